//! Runs the image in QEMU. `TESSERA_QEMU` names the QEMU to use: a command and its first arguments,
//! separated by spaces. The tests are ignored by default as they need it.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

const SUCCESS: i32 = 1;
const PANIC: i32 = 3;
const FAILURE: i32 = 5;
/// A run takes seconds; one that hangs is ended by `timeout`.
const LIMIT: &str = "120";

/// Builds the image, with its symbols in it.
fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .parent()
            .expect("a folder in the target's");
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "--release",
                "--package=selftest",
                "--target=x86_64-unknown-none",
            ])
            .arg("--target-dir")
            .arg(target)
            .status()
            .expect("cargo runs");
        assert!(built.success(), "the image is not built");
        let linked = target.join("x86_64-unknown-none/release/selftest");
        let mut image = std::fs::read(linked).expect("the image is there");
        ksyms::embed(&mut image).expect("the image has room for its symbols");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("selftest.elf");
        std::fs::write(&path, image).expect("the image is written");
        path
    })
}

struct Run {
    status: Option<i32>,
    log: String,
}

fn qemu(cores: u32, command_line: &str, more: &[&str], input: &[u8]) -> Run {
    let exit = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"];
    machine(cores, command_line, &[&exit, more].concat(), input)
}

/// Runs a machine that can't tell QEMU a status.
fn machine(cores: u32, command_line: &str, more: &[&str], input: &[u8]) -> Run {
    let qemu = std::env::var("TESSERA_QEMU").expect("TESSERA_QEMU names a QEMU");
    let machine = "-accel tcg,thread=multi -machine q35 -cpu max -m 256M -nodefaults -no-user-config -display none \
                   -no-reboot -serial stdio";
    let mut child = Command::new("timeout")
        .arg(LIMIT)
        .args(qemu.split_whitespace())
        .args(machine.split_whitespace())
        .args(["-smp", &cores.to_string(), "-append", command_line])
        .arg("-kernel")
        .arg(image())
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("QEMU starts");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(input)
        .expect("QEMU takes input");
    let output = child.wait_with_output().expect("QEMU ends");
    Run {
        status: output.status.code(),
        log: String::from_utf8_lossy(&output.stdout).into_owned(),
    }
}

fn assert_all_pass(run: &Run) {
    let results: Vec<_> = run
        .log
        .lines()
        .filter_map(|line| line.strip_prefix("report\ttest\t"))
        .collect();
    let failed: Vec<_> = results
        .iter()
        .filter(|line| !line.ends_with("\tok"))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(results.len() >= 18, "{}", run.log);
    assert_eq!(run.status, Some(SUCCESS), "{}", run.log);
}

#[test]
#[ignore = "needs QEMU"]
fn everything_passes_on_two_cores() {
    assert_all_pass(&qemu(2, "", &[], b""));
}

#[test]
#[ignore = "needs QEMU"]
fn everything_passes_on_four_cores() {
    assert_all_pass(&qemu(4, "", &[], b""));
}

#[test]
#[ignore = "needs QEMU"]
fn everything_passes_on_one_core_and_without_newer_features() {
    assert_all_pass(&qemu(1, "", &["-cpu", "qemu64"], b""));
}

/// Newer chipsets stop the PIT; the clock is measured by ACPI's timer then.
#[test]
#[ignore = "needs QEMU"]
fn everything_passes_without_a_pit() {
    let run = qemu(2, "", &["-machine", "pit=off"], b"");
    assert_all_pass(&run);
    assert!(run.log.contains("the PIT does not count"), "{}", run.log);
}

/// The clock is measured against the timer that is wanted.
#[test]
#[ignore = "needs QEMU"]
fn everything_passes_by_each_timer() {
    for (option, name) in [("hpet", "the HPET"), ("acpi", "ACPI's timer")] {
        let run = qemu(2, &format!("log=debug timer={option}"), &[], b"");
        assert_all_pass(&run);
        let said = format!("MHz by {name}");
        assert!(run.log.contains(&said), "{}", run.log);
    }
    let run = qemu(1, "timer=hpet", &["-machine", "hpet=off"], b"");
    assert_eq!(run.status, Some(PANIC), "{}", run.log);
    assert!(run.log.contains("no timer counts"), "{}", run.log);
    let run = qemu(1, "timer=sundial", &[], b"");
    assert_eq!(run.status, Some(FAILURE), "{}", run.log);
}

/// A real machine has no device that ends QEMU: it goes off by ACPI, or starts anew. QEMU ends with
/// 0 for either, and not at all if the machine only stops.
#[test]
#[ignore = "needs QEMU"]
fn a_machine_goes_off_by_acpi() {
    for chipset in ["q35", "pc"] {
        let run = machine(2, "", &["-machine", chipset], b"");
        assert_eq!(run.status, Some(0), "{chipset}: {}", run.log);
        assert!(run.log.contains("report\ttest\t"), "{}", run.log);
    }
    for (option, how) in [("off", "failure"), ("reset", "panic")] {
        let run = machine(2, &format!("failure={option} crash={how}"), &[], b"");
        assert_eq!(run.status, Some(0), "{option}: {}", run.log);
    }
}

/// A server's BMC has the console on COM2, say, and ACPI's SPCR names it.
#[test]
#[ignore = "needs QEMU"]
fn the_log_goes_to_the_serial_port_that_acpi_names() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (table, second) = (folder.join("spcr"), folder.join("com2"));
    // What follows the header: a 16550 at ports, 8 of them, at 0x2f8, 115200 bits a second.
    let mut spcr = [0_u8; 80 - 36];
    spcr[4..8].copy_from_slice(&[1, 8, 0, 1]);
    spcr[8..10].copy_from_slice(&0x2f8_u16.to_le_bytes());
    spcr[22] = 7;
    std::fs::write(&table, spcr).expect("a table");
    let table = format!("sig=SPCR,rev=1,data={}", table.display());
    let second_port = format!("file:{}", second.display());
    let run = qemu(1, "", &["-acpitable", &table, "-serial", &second_port], b"");
    let log = std::fs::read_to_string(&second).expect("the second port's output");
    assert!(!run.log.contains("report\t"), "{}", run.log);
    assert_all_pass(&Run {
        status: run.status,
        log,
    });
}

/// The board's watchdog is stopped by the write that ACPI's WDAT names: here to the port that ends
/// QEMU.
#[test]
#[ignore = "needs QEMU"]
fn the_watchdog_of_the_board_is_stopped() {
    let table = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wdat");
    // What follows the header: its own of 32 bytes, and one entry: "set stopped state" by writing
    // the value 0x10 to the 8-bit register at port 0xf4.
    let mut wdat = [0_u8; 32 + 24];
    wdat[28] = 1;
    wdat[32..38].copy_from_slice(&[0x0b, 2, 0, 0, 1, 8]);
    wdat[40] = 0xf4;
    wdat[48] = 0x10;
    wdat[52] = 0xff;
    std::fs::write(&table, wdat).expect("a table");
    let table = format!("sig=WDAT,rev=1,data={}", table.display());
    let run = qemu(1, "", &["-acpitable", &table], b"");
    assert_eq!(run.status, Some(0x10 << 1 | 1), "{}", run.log);
    assert!(run.log.contains("stopping the watchdog"), "{}", run.log);
}

/// q35's chipset has a watchdog that no WDAT describes. It is stopped, and is the one that resets
/// the machine if it is let run.
#[test]
#[ignore = "needs QEMU"]
fn the_watchdog_of_the_chipset_is_stopped() {
    let resets = ["-global", "ICH9-LPC.noreboot=false"];
    let run = qemu(1, "", &resets, b"");
    assert_all_pass(&run);
    let said = "stopped the chipset's watchdog by port 0x668";
    assert!(run.log.contains(said), "{}", run.log);
    let run = qemu(1, "crash=watchdog", &resets, b"");
    assert_eq!(run.status, Some(0), "{}", run.log);
    let run = qemu(1, "", &["-machine", "pc"], b"");
    assert_all_pass(&run);
    assert!(!run.log.contains("watchdog"), "{}", run.log);
}

/// IOMMUs are left as firmware has left them, which one line says.
#[test]
#[ignore = "needs QEMU"]
fn iommus_are_named() {
    for (device, said) in [
        ("intel-iommu", "IOMMU: VT-d, 1 of 1 off, left so"),
        ("amd-iommu", "IOMMU: AMD-Vi, 1 of 1 off, left so"),
    ] {
        let run = qemu(1, "", &["-device", device], b"");
        assert_all_pass(&run);
        assert!(run.log.contains(said), "{}", run.log);
    }
}

/// Writes 32-bit words into a file of zeros.
fn put(path: &Path, words: &[(u64, u32)]) {
    let mut file = std::fs::File::create(path).expect("a file");
    file.set_len(128 << 20).expect("a sparse file");
    for &(at, word) in words {
        file.seek(SeekFrom::Start(at)).expect("a place in it");
        file.write_all(&word.to_le_bytes()).expect("written");
    }
}

/// Configuration space of segment 1, and the registers of an IOMMU that firmware has left on, are
/// made up of memory that is no RAM for the image; QEMU has neither. i440FX has no table of its own
/// for them.
#[test]
#[ignore = "needs QEMU"]
fn another_segment_and_an_active_iommu_are_found() {
    const BASE: u64 = 4 << 30;
    const STATUS: u64 = (127 << 20) + 0x1c;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let [memory, mcfg, dmar] = ["segment", "mcfg", "dmar"].map(|name| folder.join(name));
    // A bridge at 00:01.0, behind it bus 3, on it the device at 03:02.0.
    let (bridge, device) = (1 << 15, 3 << 20 | 2 << 15);
    put(
        &memory,
        &[
            (bridge, 0x000c_1b36),
            (bridge + 0x0c, 1 << 16),
            (bridge + 0x18, 3 << 8),
            (device, 0x7e57_1b36),
            (device + 8, 0xff00_0001),
            (STATUS, 1 << 31),
        ],
    );
    let mut table = [0_u8; 8 + 16];
    table[8..16].copy_from_slice(&BASE.to_le_bytes());
    table[16..20].copy_from_slice(&[1, 0, 0, 126]);
    std::fs::write(&mcfg, table).expect("a table");
    let mut table = [0_u8; 12 + 16];
    table[14] = 16;
    table[20..28].copy_from_slice(&(BASE + (127 << 20)).to_le_bytes());
    std::fs::write(&dmar, table).expect("a table");
    let object = format!(
        "memory-backend-file,id=made,size=128M,share=on,mem-path={}",
        memory.display()
    );
    let table = |name: &str, path: &Path| format!("sig={name},rev=1,data={}", path.display());
    let run = qemu(
        1,
        "",
        &[
            "-machine",
            "pc",
            "-m",
            "256M,slots=1,maxmem=1G",
            "-object",
            &object,
            "-device",
            &format!("pc-dimm,memdev=made,addr={BASE}"),
            "-acpitable",
            &table("MCFG", &mcfg),
            "-acpitable",
            &table("DMAR", &dmar),
        ],
        b"",
    );
    assert_all_pass(&run);
    for said in [
        "a made-up device at 0001:03:02.0",
        "IOMMU: VT-d, 1 of 1 on, left so",
    ] {
        assert!(run.log.contains(said), "{said}: {}", run.log);
    }
}

/// A CPU's errata are named where no host answers for it.
#[test]
#[ignore = "needs QEMU"]
fn errata_are_named() {
    let zen = "EPYC-Rome,-hypervisor,ucode-rev=";
    for (cpu, said) in [
        (format!("{zen}0x0830107a"), Some("Zenbleed")),
        (format!("{zen}0x0830107b"), None),
        ("Skylake-Client,-hypervisor".into(), Some("SKL150")),
        ("Skylake-Client".into(), None),
    ] {
        let run = qemu(1, "log=debug", &["-cpu", &cpu], b"");
        assert_all_pass(&run);
        let line = run.log.lines().find(|line| line.contains("this CPU"));
        assert_eq!(line.is_some(), said.is_some(), "{cpu}: {}", run.log);
        let named = line
            .zip(said)
            .is_none_or(|(line, said)| line.contains(said));
        assert!(named, "{cpu}: {line:?}");
    }
}

#[test]
#[ignore = "needs QEMU"]
fn devices_work() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (disk, console) = (folder.join("disk"), folder.join("console"));
    let sectors: Vec<_> = (0..1 << 20_usize)
        .map(|at: usize| u8::try_from(at / 7 % 251).expect("below 251"))
        .collect();
    std::fs::write(&disk, sectors).expect("the disk is written");
    // A reader that is late: what the guest writes meanwhile must wait, not get lost.
    let _ = std::fs::remove_file(&console);
    let listener = UnixListener::bind(&console).expect("the console's socket");
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("QEMU connects");
        stream
            .write_all(b"hello there\n")
            .expect("QEMU takes input");
        std::thread::sleep(Duration::from_secs(1));
        let mut output = Vec::new();
        stream.read_to_end(&mut output).expect("QEMU gives output");
        output
    });
    let drive = format!("if=none,id=disk,format=raw,file={}", disk.display());
    let chardev = format!("socket,id=console,path={}", console.display());
    let run = qemu(
        2,
        "",
        &[
            "-drive",
            &drive,
            "-device",
            "virtio-blk-pci,drive=disk",
            "-device",
            "e1000e,romfile=",
            "-chardev",
            &chardev,
            "-device",
            "virtio-serial-pci,max_ports=2",
            "-device",
            "virtserialport,nr=1,chardev=console",
        ],
        b"",
    );
    assert_all_pass(&run);
    let written = std::fs::read(&disk).expect("the disk is read");
    for (task, bytes) in (0..24).zip(written[64 * 512..].chunks(8192)) {
        assert!(bytes.iter().all(|&byte| byte == task ^ 19), "task {task}");
    }
    let output = reader.join().expect("the reader ends");
    assert!(output.starts_with(b"hello there\nxxx"));
    assert_eq!(output.len(), b"hello there\n".len() + (1 << 20));
}

/// Cards of a second processor are behind a root bridge of their own.
#[test]
#[ignore = "needs QEMU"]
fn a_card_behind_a_second_root_bridge_is_found() {
    let run = qemu(
        2,
        "log=info",
        &[
            "-device",
            "pxb-pcie,id=second,bus_nr=128,bus=pcie.0",
            "-device",
            "pcie-root-port,id=below,bus=second,chassis=1",
            "-device",
            "e1000e,romfile=,bus=below",
        ],
        b"",
    );
    assert_all_pass(&run);
    assert!(run.log.contains("an 82574 at 81:00.0"), "{}", run.log);
}

/// The kernel's rules hold, and a kernel that broke one says which and where.
#[test]
#[ignore = "needs QEMU"]
fn a_broken_kernel_says_how() {
    for (how, expected) in [
        ("panic", "on purpose"),
        ("write_text", "kernel exception 14 (page fault), error 0x3"),
        (
            "execute_data",
            "kernel exception 14 (page fault), error 0x11",
        ),
        (
            "execute_heap",
            "kernel exception 14 (page fault), error 0x11",
        ),
        (
            "null",
            "kernel exception 14 (page fault), error 0x2, address 0x0",
        ),
        ("overflow", "a kernel stack has overflowed"),
        ("undefined", "kernel exception 6 (invalid opcode)"),
        (
            "foreign_entry",
            "entry 0x200007 points to no frame of a `FrameArray`",
        ),
    ] {
        let run = qemu(2, &format!("crash={how}"), &[], b"");
        assert_eq!(run.status, Some(PANIC), "{how}: {}", run.log);
        assert!(run.log.contains(expected), "{how}: {}", run.log);
        assert!(
            run.log.contains(" selftest::"),
            "{how}: no function is named:\n{}",
            run.log
        );
    }
    let run = qemu(2, "crash=panic", &[], b"");
    assert!(
        run.log.contains("selftest::crash::panicking_function+"),
        "{}",
        run.log
    );
}

#[test]
#[ignore = "needs QEMU"]
fn a_failure_has_its_own_status() {
    assert_eq!(qemu(1, "crash=failure", &[], b"").status, Some(FAILURE));
    assert_eq!(qemu(1, "log=nonsense", &[], b"").status, Some(FAILURE));
    assert_eq!(qemu(1, "broken=%zz", &[], b"").status, Some(FAILURE));
}
