//! Adapters passed through for real: Linux guests with an IOMMU bind the modelled adapter to
//! vfio-pci, and QEMU in each guest runs a component on it. All DMA goes through the guests'
//! IOMMUs.
//!
//! QEMU's TCG emulates the inner machines within the outer ones: there is no KVM, and `xtask
//! passthrough` itself, which wants it, is not run.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use testbed_tests::xtask;

/// Binds the guest's adapter, `$B`, to vfio-pci. Without remapped interrupts Linux wants to be told
/// that the machine is trusted.
const BIND: &str = r#"
set -e
for d in /sys/bus/pci/devices/*; do case $(cat $d/device) in 0x1003|0x1007) B=${d##*/};; esac; done
echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
echo vfio-pci > /sys/bus/pci/devices/$B/driver_override
if [ -e /sys/bus/pci/devices/$B/driver ]; then echo $B > /sys/bus/pci/devices/$B/driver/unbind; fi
echo $B > /sys/bus/pci/drivers_probe
q=/qemu/usr
"#;

/// Waits for a line of the log, at most two minutes; then shows the log.
const WAIT: &str = r#"
for second in $(seq 120); do if grep -q "$wanted" $file; then break; fi; sleep 1; done
cat /tmp/log /tmp/err
"#;

/// Returns a guest's command: a component on its adapter, until `file` holds `wanted`.
fn command(role: &str, options: &str, devices: &str, file: &str, wanted: &str) -> String {
    let key = "0".repeat(64);
    format!(
        "{BIND}\
         $q/lib64/ld-linux-x86-64.so.2 --library-path $q/lib/x86_64-linux-gnu \
         $q/bin/qemu-system-x86_64 -L $q/share/qemu -L $q/share/seabios \
         -nodefaults -no-user-config -display none -no-reboot -accel tcg -cpu max \
         -machine q35,memory-backend=mem -m 192M \
         -object memory-backend-memfd,id=mem,size=192M,share=on \
         -kernel /data/{role}.elf -append 'cluster=nested key={key} keepalive=15000 {options}' \
         -device vfio-pci,host=$B,addr=0x8,rombar=0 {devices} \
         -serial file:/tmp/log 2>/tmp/err &\n\
         qemu=$! file={file} wanted='{wanted}'\n{WAIT}\nkill $qemu || true\n\
         grep -q \"$wanted\" $file\n"
    )
}

fn images() -> PathBuf {
    let built = xtask()
        .args(["build-image", "all"])
        .stdout(Stdio::null())
        .status()
        .expect("xtask runs");
    assert!(built.success(), "the images are not built");
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/images")
}

/// A program runs on P, with its memory on M and its files on S.
#[test]
#[ignore = "takes minutes, 9 GB and an idle host"]
fn a_cluster_runs_on_adapters_passed_through() {
    let images = images();
    let disk = Path::new(env!("CARGO_TARGET_TMPDIR")).join("passthrough-disk");
    let made = xtask()
        .args(["run", "--quiet", "--fresh", "--disk-room", "16M", "--disk"])
        .arg(&disk)
        .args(["--", "busybox", "true"])
        .status()
        .expect("xtask runs");
    assert!(made.success(), "no disk");
    let lost = "processor.* is lost";
    let commands = [
        command("memory", "", "", "/tmp/log", lost),
        command(
            "storage",
            "",
            "-drive if=none,id=disk,format=raw,file=/data/disk \
             -device virtio-blk-pci,drive=disk,disable-legacy=on",
            "/tmp/log",
            lost,
        ),
        // The channel's other end is a file: P waits for an answer to its last frame for ever.
        command(
            "processor",
            "pcache=8M -- /bin/busybox printf %25d-%25s 42 passed",
            "-device virtio-serial-pci,max_ports=2,disable-legacy=on \
             -chardev file,id=streams,path=/tmp/streams \
             -device virtserialport,nr=1,chardev=streams",
            "/tmp/streams",
            "42-passed",
        ),
    ];
    let mut linux = xtask();
    linux.args(["linux", "--iommu", "--memory", "3G", "--timeout", "300"]);
    linux.args(["--modules", "vfio-pci,vfio_iommu_type1"]);
    for role in ["memory", "storage", "processor"] {
        let image = images.join(format!("{role}.stripped.elf"));
        linux.arg(format!("--add={}:/data/{role}.elf", image.display()));
    }
    linux.arg(format!("--add={}:/data/disk", disk.display()));
    let output = linux
        .arg("--")
        .args(commands)
        .stderr(Stdio::inherit())
        .output()
        .expect("xtask runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    for part in ["port 1 is active", "report\tready"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let _ = std::fs::remove_file(disk);
}
