//! iPXE in QEMU on a modelled card: its own driver must bring the link up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Deadline of the firmware and iPXE.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);
/// Text that iPXE's script prints when the link is up. The one below ends the script either way.
const UP: &str = "the link is up";
const END: &str = "the script has ended";

fn script() -> String {
    format!(
        "#!ipxe\nifopen net0 || goto end\niflinkwait --timeout 60000 net0 || goto end\nibstat\necho {UP}\n:end\nifstat\n\
         echo {END}\nshell\n"
    )
}

/// Boots iPXE on the card behind `socket`, and waits until it has its link.
///
/// # Errors
///
/// Why it has none, with what it said.
pub(crate) fn link_comes_up(folder: &Path, socket: &Path) -> Result<(), String> {
    let said = folder.join("ipxe.log");
    // What an earlier run left.
    let _ = fs::remove_file(&said);
    let mut qemu = qemu(folder, socket, &said)?;
    let mut child = qemu
        .spawn()
        .map_err(|error| format!("QEMU does not start: {error}"))?;
    let deadline = Instant::now() + PATIENCE;
    let text = loop {
        let text = String::from_utf8_lossy(&fs::read(&said).unwrap_or_default()).into_owned();
        let ended = child
            .try_wait()
            .map_err(|error| error.to_string())?
            .is_some();
        if text.contains(END) || ended || Instant::now() >= deadline {
            break text;
        }
        sleep(LOOK);
    };
    // It would wait for commands for ever.
    let _ = child.kill();
    let _ = child.wait();
    if text.contains(UP) {
        Ok(())
    } else {
        Err(format!("iPXE has no link; it said:\n{text}"))
    }
}

fn qemu(folder: &Path, socket: &Path, said: &Path) -> Result<Command, String> {
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let (words, root) = (
        variable("TESSERA_QEMU")?,
        PathBuf::from(variable("TESSERA_IPXE")?),
    );
    let disk = folder.join("ipxe");
    let boot = disk.join("EFI/BOOT");
    let variables = folder.join("variables");
    fs::create_dir_all(&boot)
        .and_then(|()| {
            fs::copy(
                root.join("usr/lib/ipxe/ipxe-amd64.efi"),
                boot.join("BOOTX64.EFI"),
            )
        })
        .and_then(|_| fs::write(disk.join("autoexec.ipxe"), script()))
        .and_then(|()| fs::copy(root.join("usr/share/OVMF/OVMF_VARS_4M.fd"), &variables))
        .map_err(|error| format!("iPXE's disk: {error}"))?;
    let device = format!(
        r#"{{"driver":"vfio-user-pci","addr":"0x8","socket":{{"type":"unix","path":"{}"}}}}"#,
        socket.display()
    );
    let machine = "-accel tcg,thread=multi -cpu max -machine q35,memory-backend=mem -m 512M -nodefaults -no-user-config \
        -display none -vga none -no-reboot -object memory-backend-memfd,id=mem,size=512M,share=on \
        -device virtio-blk-pci,drive=disk,bootindex=0";
    let firmware = root.join("usr/share/OVMF/OVMF_CODE_4M.fd");
    // The program itself, and nothing around it, so that ending it ends it.
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().ok_or("TESSERA_QEMU is empty")?);
    command
        .args(words)
        .args(machine.split_whitespace())
        .arg("-drive")
        .arg(format!(
            "if=pflash,format=raw,unit=0,readonly=on,file={}",
            firmware.display()
        ))
        .arg("-drive")
        .arg(format!(
            "if=pflash,format=raw,unit=1,file={}",
            variables.display()
        ))
        .arg("-drive")
        .arg(format!(
            "if=none,id=disk,format=raw,file=fat:rw:{}",
            disk.display()
        ))
        .arg("-serial")
        .arg(format!("file:{}", said.display()))
        .args(["-device", &device])
        .stdin(Stdio::null());
    Ok(command)
}
