//! Tests on a host that is made up.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::bdf::Bdf;
use super::bind::Bound;
use super::check::{self, Finding, Needs};
use super::fake::{CARD, Fake};
use super::machine::{Machine, shown};
use super::{Args, pin, watch};
use crate::bed::machine::Chipset;
use crate::bed::process::Process;
use crate::build_image::Role;
use crate::run::vm::StreamsDevice;

const NEIGHBOUR: &str = "0000:04:00.1";

impl Fake {
    fn findings(&self) -> Vec<Finding> {
        let needs = Needs {
            bdf: card(),
            memory: 128 << 20,
            page: 2048,
            node: Some(1),
        };
        check::all(&self.host(), &needs)
    }

    /// Returns the names and texts of the missing conditions.
    fn missing(&self) -> Vec<(&'static str, String)> {
        let findings = self.findings().into_iter().filter(Finding::fails);
        findings
            .map(|finding| (finding.name, finding.to_string()))
            .collect()
    }
}

fn card() -> Bdf {
    CARD.parse().expect("an address")
}

#[test]
fn a_host_that_has_everything_misses_nothing() {
    let fake = Fake::new("good");
    assert_eq!(fake.missing(), []);
    let text: Vec<String> = fake.findings().iter().map(Finding::to_string).collect();
    let text = text.join("\n");
    assert!(text.contains("mlx4_core loses the card"), "{text}");
    assert!(text.contains("64 of 2048 KiB on NUMA node 1"), "{text}");
}

/// Change that takes something from a host.
type Break = fn(&Fake);

/// Conditions: the name, the change, the fault and the remedy.
const CASES: [(&str, Break, &str, &str); 14] = [
    (
        "device",
        |fake| fake.remove(&format!("sys/bus/pci/devices/{CARD}")),
        "no PCI device",
        "no ConnectX-3",
    ),
    (
        "device",
        |fake| fake.put(&format!("sys/bus/pci/devices/{CARD}/device"), "0x1017"),
        "15b3:1017",
        "no ConnectX-3",
    ),
    (
        "device",
        |fake| fake.put(&format!("sys/bus/pci/devices/{CARD}/device"), "0x1004"),
        "virtual",
        "physical",
    ),
    (
        "function",
        |fake| fake.put(&format!("sys/bus/pci/devices/{CARD}/physfn/x"), ""),
        "virtual",
        "physical",
    ),
    (
        "function",
        |fake| fake.put(&format!("sys/bus/pci/devices/{CARD}/sriov_numvfs"), "4\n"),
        "4 virtual",
        "echo 0 >",
    ),
    (
        "IOMMU",
        |fake| fake.remove("sys/class/iommu/dmar0"),
        "no IOMMU",
        "intel_iommu=on",
    ),
    (
        "IOMMU group",
        |fake| fake.device(NEIGHBOUR, "0x1", "0x010802", Some("nvme")),
        "0000:04:00.1 (nvme)",
        "slot",
    ),
    (
        "interfaces",
        |fake| {
            fake.put(
                &format!("sys/bus/pci/devices/{CARD}/net/ib0/operstate"),
                "up\n",
            )
        },
        "ib0",
        "ip link set ib0 down",
    ),
    (
        "rights",
        |fake| fake.remove(&format!("sys/bus/pci/devices/{CARD}/driver_override")),
        "may not bind",
        "root",
    ),
    (
        "vfio-pci",
        |fake| fake.remove("sys/bus/pci/drivers/vfio-pci"),
        "not loaded",
        "modprobe vfio-pci",
    ),
    (
        "huge pages",
        |fake| {
            fake.put(
                "sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages",
                "60\n",
            )
        },
        "60 are free",
        "echo 70 >",
    ),
    (
        "huge pages",
        |fake| fake.remove("sys/devices/system/node/node1/hugepages"),
        "no huge pages",
        "--huge-pages",
    ),
    ("KVM", |fake| fake.remove("dev/kvm"), "no ", "VT-x"),
    (
        "device",
        |fake| fake.put(&format!("sys/bus/pci/devices/{CARD}/vendor"), "garbage"),
        "no PCI device",
        "ConnectX-3",
    ),
];

#[test]
fn each_missing_condition_has_its_line_and_remedy() {
    for (index, (name, break_it, fault, remedy)) in CASES.into_iter().enumerate() {
        let fake = Fake::new(&format!("case-{index}"));
        break_it(&fake);
        let missing = fake.missing();
        assert_eq!(missing.len(), 1, "{name}: {missing:?}");
        let (found, text) = &missing[0];
        assert!(
            *found == name && text.contains(fault) && text.contains(remedy),
            "{name}: {text}"
        );
    }
}

#[test]
fn all_missing_conditions_are_listed_at_once() {
    let fake = Fake::new("bare");
    fake.device(NEIGHBOUR, "0x1007", "0x020700", None);
    for path in [
        "sys/class",
        "sys/kernel/mm",
        "sys/devices",
        "dev",
        "sys/bus/pci/drivers/vfio-pci",
    ] {
        fake.remove(path);
    }
    fake.remove(&format!("sys/bus/pci/devices/{CARD}"));
    let missing = fake.missing();
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["device", "IOMMU", "vfio-pci", "huge pages", "KVM"]);
    assert!(
        missing[0].1.contains(NEIGHBOUR),
        "the other card is not named: {}",
        missing[0].1
    );
}

#[test]
fn qemu_may_be_installed_fetched_or_missing() {
    let found = check::of_qemu(Some(Path::new("/usr/bin/qemu-system-x86_64")), false);
    assert!(!found.fails() && found.to_string().contains("/usr/bin/qemu-system-x86_64"));
    assert!(!check::of_qemu(None, true).fails());
    let missing = check::of_qemu(None, false);
    assert!(
        missing.fails() && missing.to_string().contains("install QEMU"),
        "{missing}"
    );
}

#[test]
fn members_without_a_driver_and_bridges_do_not_matter() {
    let fake = Fake::new("group");
    fake.device(NEIGHBOUR, "0x1", "0x010802", None);
    fake.device("0000:04:00.2", "0x1", "0x010802", Some("vfio-pci"));
    assert_eq!(fake.missing(), []);
}

#[test]
fn a_card_is_bound_and_given_back() {
    let fake = Fake::new("bind");
    let host = fake.host();
    let bound = Bound::new(&host, &fake, card()).expect("bound");
    assert_eq!(fake.driver(CARD).as_deref(), Some("vfio-pci"));
    let writes = fake.writes();
    let device = format!("devices/{CARD}");
    assert_eq!(
        writes,
        [
            format!("{device}/driver_override=vfio-pci"),
            format!("drivers/mlx4_core/unbind={CARD}"),
            format!("drivers_probe={CARD}"),
        ]
    );
    bound.give_back().expect("given back");
    assert_eq!(fake.driver(CARD).as_deref(), Some("mlx4_core"));
    assert_eq!(
        fake.writes(),
        [
            format!("{device}/driver_override="),
            format!("drivers/vfio-pci/unbind={CARD}"),
            format!("drivers/mlx4_core/bind={CARD}"),
        ]
    );
}

#[test]
fn a_card_is_given_back_on_a_panic_too() {
    let fake = Fake::new("panic");
    let host = fake.host();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _bound = Bound::new(&host, &fake, card()).expect("bound");
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(fake.driver(CARD).as_deref(), Some("mlx4_core"));
}

#[test]
fn a_card_that_vfio_refuses_goes_back_at_once() {
    let mut fake = Fake::new("refused");
    fake.broken = Some("vfio-pci");
    let host = fake.host();
    let error = Bound::new(&host, &fake, card()).err().expect("refused");
    assert!(
        format!("{error:#}").contains("bound to no driver"),
        "{error:#}"
    );
    assert_eq!(fake.driver(CARD).as_deref(), Some("mlx4_core"));
    let text = fs::read_to_string(fake.at(CARD).join("driver_override")).expect("there");
    assert_eq!(text, "(null)\n");
}

#[test]
fn a_card_that_its_driver_does_not_take_back_is_told() {
    let mut fake = Fake::new("lost");
    fake.broken = Some("mlx4_core");
    let host = fake.host();
    let bound = Bound::new(&host, &fake, card()).expect("bound");
    let error = format!("{:#}", bound.give_back().expect_err("not taken"));
    assert!(error.contains("was not given back to mlx4_core"), "{error}");
    assert!(error.contains(&format!("echo {CARD} >")), "{error}");
}

#[test]
fn what_was_so_before_stays_so() {
    let fake = Fake::new("before");
    let host = fake.host();
    // A card of vfio-pci's already.
    fake.bind(CARD, Some("vfio-pci"));
    Bound::new(&host, &fake, card())
        .expect("bound")
        .give_back()
        .expect("left");
    assert_eq!(fake.driver(CARD).as_deref(), Some("vfio-pci"));
    assert_eq!(fake.writes(), Vec::<String>::new());
    // One without a driver, with an override of the user's.
    fake.bind(CARD, None);
    fs::write(fake.at(CARD).join("driver_override"), "nvme\n").expect("written");
    Bound::new(&host, &fake, card())
        .expect("bound")
        .give_back()
        .expect("left");
    assert_eq!(fake.driver(CARD), None);
    let text = fs::read_to_string(fake.at(CARD).join("driver_override")).expect("there");
    assert_eq!(text, "nvme\n");
}

#[test]
fn the_command_has_huge_pages_the_card_and_no_key_on_the_screen() {
    let machine = Machine {
        role: Role::Processor,
        bdf: card(),
        memory: 4 << 30,
        page: 1 << 20,
        node: Some(1),
        cpus: 3,
        image: Path::new("/images/it's.elf"),
        command_line: "cluster=c key=00ff pollers=2",
        log: Path::new("/tmp/log"),
    };
    let mut command = Command::new("qemu");
    machine.add_to(&mut command);
    StreamsDevice::Virtio.add_to(&mut command, Chipset::Q35);
    let text = shown(&command);
    for part in [
        "-accel kvm -cpu host",
        "-object memory-backend-memfd,id=mem,size=4194304K,share=on,prealloc=on,",
        "hugetlb=on,hugetlbsize=1048576K,host-nodes=1,policy=bind",
        "-m 4194304K -smp 3",
        r"-kernel '/images/it'\''s.elf' -append 'cluster=c key=…",
        "-device vfio-pci,host=0000:04:00.0,addr=0x8,rombar=0",
        "virtserialport",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("00ff"), "{text}");
    let args: Vec<_> = command.get_args().collect();
    assert!(
        args.contains(&"cluster=c key=00ff pollers=2".as_ref()),
        "QEMU needs the key"
    );
}

#[test]
fn threads_of_virtual_cpus_are_found_and_pinned() {
    let fake = Fake::new("pin");
    let own = rustix::thread::gettid().as_raw_nonzero().get();
    for (thread, name) in [
        (own, "CPU 0/KVM"),
        (77, "worker"),
        (78, "CPU x/KVM"),
        (79, "qemu"),
    ] {
        fake.put(&format!("proc/5/task/{thread}/comm"), &format!("{name}\n"));
    }
    let threads = pin::threads(&fake.host().proc, 5);
    assert_eq!(threads.into_iter().collect::<Vec<_>>(), [(0, own)]);
    assert!(pin::threads(&fake.host().proc, 6).is_empty());

    let before = rustix::thread::sched_getaffinity(None).expect("affinity");
    let core = (0..rustix::thread::CpuSet::MAX_CPU).find(|core| before.is_set(*core));
    let core = core.expect("a core");
    pin::pin(&[(0, own)].into(), &[core]).expect("pinned");
    let now = rustix::thread::sched_getaffinity(None).expect("affinity");
    assert!(now.is_set(core) && now.count() == 1);
    pin::pin(&[(1, own)].into(), &[core]).expect_err("no core for it");
}

#[test]
fn cores_are_those_named_or_the_last_near_the_card() {
    assert_eq!(pin::choose(Some(&[1, 5]), &[8, 9], 2), [1, 5]);
    assert_eq!(pin::choose(None, &[8, 9, 10, 11], 2), [10, 11]);
    assert!(
        pin::choose(None, &[8, 9], 2).is_empty(),
        "none is left to the host"
    );
    let fake = Fake::new("cores");
    let found = |cores: &[usize]| check::of_cores(&fake.host(), cores);
    assert!(!found(&[10, 11]).fails() && !found(&[]).fails());
    let missing = found(&[11, 12]);
    assert!(
        missing.fails() && missing.to_string().contains("cores 12 are"),
        "{missing}"
    );
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// Returns the kernel command line of a passthrough, or the error about its options.
fn checked(words: &str) -> Result<String, String> {
    let words = ["passthrough"].into_iter().chain(words.split(' '));
    let line = <Line as clap::Parser>::try_parse_from(words).map_err(|error| error.to_string())?;
    line.args.check().map_err(|error| format!("{error:#}"))
}

#[test]
fn options_that_do_not_fit_the_role_are_refused() {
    let fake = Fake::new("options");
    let key = "ab".repeat(32);
    fake.put("key", &format!("{key}\n"));
    let file = fake.folder.join("key");
    let of = |role: &str, more: &str| {
        checked(&format!(
            "{role} 04:00.0 --cluster c --key-file {}{more}",
            file.display()
        ))
    };
    let line = of("memory", " --boot workers=4 --boot profile");
    assert_eq!(line, Ok(format!("cluster=c key={key} workers=4 profile")));
    assert!(of("storage", " --disk d").is_ok());
    assert!(
        of(
            "processor",
            " --boot pcache=1G --cpus 2 --cores 4-5 -- /bin/true"
        )
        .is_ok()
    );
    for (role, more, told) in [
        ("storage", "", "--disk"),
        ("memory", " --disk d", "--disk"),
        ("processor", "", "a program"),
        ("memory", " -- /bin/true", "a program"),
        ("memory", " --boot pcache=1G", "has no option"),
        ("memory", " --memory 3M", "multiple"),
        ("memory", " --memory 0", "multiple"),
        ("memory", " --huge-pages 4K", "2M or 1G"),
        ("memory", " --huge-pages 1G --memory 1536M", "multiple"),
        ("memory", " --cpus 0", "at least 1"),
        ("memory", " --cpus 3 --cores 4-5", "2 cores for 3"),
        ("memory", " --cores 5-4", "no list of cores"),
        ("all", "", "invalid value"),
    ] {
        let error = of(role, more).expect_err(more);
        assert!(error.contains(told), "{role}{more}: {error}");
    }
    fake.put("key", &key[1..]);
    let error = of("memory", "").expect_err("a short key");
    assert!(
        error.contains("64 hexadecimal digits") && !error.contains(&key[1..]),
        "{error}"
    );
}

#[test]
fn the_machine_s_end_is_told_by_its_status() {
    let fake = Fake::new("watch");
    let ended = |status: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo why >&2; exit {status}")]);
        let mut process = Process::start("memory", command, &fake.folder).expect("sh starts");
        watch(&mut process, &fake.host(), 2, &[0, 0]).map_err(|error| format!("{error:#}"))
    };
    // The image's own statuses, see "Leaving" in docs/architecture.md.
    assert_eq!(ended("1"), Ok(()));
    for (status, told) in [
        ("3", "panicked"),
        ("5", "an error"),
        ("0", "its QEMU ended"),
    ] {
        let error = ended(status).expect_err(status);
        assert!(
            error.contains(told) && error.contains("why"),
            "{status}: {error}"
        );
    }
}
