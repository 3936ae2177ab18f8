//! The fabric in this process: a card for a guest, one for our driver, and a thread that runs our
//! side.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fabric::{FabricConfig, Manager};
use hal::Platform;
use harness::Machine;
use hca_model::trace::{Recorder, Text};
use hca_model::{ClusterConfig, NodeConfig};
use hca_server::local::Tasks;
use hca_server::node::Cluster;
use mlx4::{Config, Mlx4};
use probe::node::Node;
use probe::{Error, Stream};
use testbed_tests::linux::bring_up::{Commands, judge};
use verbs::{Gid, Guid};

use super::driver::Ours;
use super::image::Image;
use super::ipxe::link_comes_up;
use super::tcp::{LOOK, Tcp};

/// Training time of the links: the least that real ones need. Packets that come while Linux still
/// opens the port are errors to its kernel.
const TRAINING: Duration = Duration::from_millis(300);
const GUEST_GUID: Guid = Guid(0x0002_c903_0000_0100);
const OUR_GUID: Guid = Guid(0x0002_c903_0000_0900);
const IMAGE_GUID: Guid = Guid(0x0002_c903_0000_0a00);
/// Node 0's IPoIB address, and one that our card has as far as Linux knows.
pub(crate) const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
pub(crate) const OUR_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 9);
/// IPoIB address of the image's card.
pub(crate) const IMAGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
/// TCP port that the pingpongs listen on.
const PINGPONG_PORT: u16 = 18515;

/// Fabric of the guests, with the forwarded port by which they reach our side.
pub(crate) struct Companion {
    folder: PathBuf,
    forwarded: u16,
}

impl Companion {
    /// Starts the fabric, with a subnet manager of its own or without, and our side. They live as
    /// long as the process.
    ///
    /// # Errors
    ///
    /// When there is no folder, socket or port to be had.
    pub(crate) fn start(manager: Manager) -> io::Result<Self> {
        let folder = make_folder()?;
        let [control, pingpong, free] = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0"));
        let (control, pingpong, free) = (control?, pingpong?, free?);
        // QEMU takes it right away.
        let forwarded = free.local_addr()?.port();
        drop(free);
        for listener in [&control, &pingpong] {
            listener.set_nonblocking(true)?;
        }
        tell_guest(&folder.join("ours"), &control, &pingpong)?;

        let cluster = Cluster::new(ClusterConfig {
            fabric: FabricConfig {
                training: TRAINING,
                manager,
                ..FabricConfig::default()
            },
        });
        let path = folder.join("trace");
        let text = Arc::new(Text::new(BufWriter::new(File::create(&path)?)));
        cluster.record(Arc::clone(&text) as Arc<dyn Recorder>);
        let trace = Trace { text, path };
        let config = |name: &str, guid| NodeConfig::new(name, guid, 1);
        for (name, guid) in [("node0", GUEST_GUID), ("image", IMAGE_GUID)] {
            let listener = UnixListener::bind(folder.join(format!("{name}.sock")))?;
            let node = cluster.add_node(config(name, guid));
            std::thread::spawn(move || node.serve(name, &listener, Duration::ZERO));
        }
        let image = Image {
            folder: folder.clone(),
            pingpong: pingpong.try_clone()?,
            forwarded,
            guest: gid(GUEST_GUID),
        };
        let machine = cluster.add_local(config("ours", OUR_GUID));
        std::thread::spawn(move || cluster.keep_time());
        std::thread::spawn(move || run(machine, &control, pingpong, image, trace));
        Ok(Self { folder, forwarded })
    }

    /// Options of `cargo xtask linux` for the guest.
    pub(crate) fn options(&self) -> Vec<String> {
        let folder = self.folder.display();
        let forward = format!("{}:{PINGPONG_PORT}", self.forwarded);
        let add = format!("{folder}/ours:/data/ours");
        [
            "--join",
            &folder.to_string(),
            "--forward",
            &forward,
            "--add",
            &add,
        ]
        .map(str::to_owned)
        .into()
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        // One that stays is only untidy.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn make_folder() -> io::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("tessera-ours-{}-{number}", std::process::id()));
    fs::create_dir(&folder)?;
    Ok(folder)
}

/// Writes what the guest's scripts need: `ports` with variables, and `ours`, which asks for our
/// part.
fn tell_guest(folder: &Path, control: &TcpListener, pingpong: &TcpListener) -> io::Result<()> {
    fs::create_dir(folder)?;
    let ports = format!(
        "ours=/data/ours/ours pingpong={}\nour_address={OUR_ADDRESS} our_hardware={}\n\
         image_address={IMAGE_ADDRESS} image_hardware={}\n",
        pingpong.local_addr()?.port(),
        hardware_address(OUR_GUID),
        hardware_address(IMAGE_GUID)
    );
    fs::write(folder.join("ports"), ports)?;
    let script = format!(
        "#!/bin/busybox sh\n# Asks the testbed for our driver's part, and prints how it went.\n\
         echo \"$1\" | busybox nc 10.0.2.2 {}\n",
        control.local_addr()?.port()
    );
    let path = folder.join("ours");
    fs::write(&path, script)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Returns the GID of a node's first port.
fn gid(node: Guid) -> Gid {
    Gid::new(Gid::DEFAULT_PREFIX, Guid(node.0 + 1))
}

/// Returns an IPoIB hardware address: a queue pair number, here 0, and a GID.
fn hardware_address(node: Guid) -> String {
    let queue_pair = "80:00:00:48".to_owned();
    gid(node)
        .0
        .iter()
        .fold(queue_pair, |text, byte| format!("{text}:{byte:02x}"))
}

/// Brings our card up, and does for ever what the guest asks for.
fn run(machine: Machine, control: &TcpListener, pingpong: TcpListener, image: Image, trace: Trace) {
    let mut tasks = Tasks::default();
    let node = match start(&mut tasks, machine) {
        Ok(node) => node,
        Err(error) => {
            println!("our card does not start: {error}");
            return;
        }
    };
    let ours = Ours {
        node,
        pingpong,
        forwarded: image.forwarded,
        guest: gid(GUEST_GUID),
    };
    let image = Arc::new(image);
    tasks.block_on(async {
        loop {
            // Nobody may ask for long.
            let Ok(mut stream) = Tcp::accept(control, &ours.node.platform).await else {
                continue;
            };
            let said = match stream.line().await {
                Ok(what) if what == "compare" => trace.compare(),
                Ok(what) if what.starts_with("image ") => {
                    run_image(&image, &what, &ours.node.platform).await
                }
                Ok(what) => ours.serve(&what).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let answer = match said {
                Ok(()) => "ours: ok\n".to_owned(),
                Err(error) => format!("ours: {error}\n"),
            };
            // A guest that has given up shows by its own result.
            let _ = stream.send(answer.as_bytes()).await;
        }
    })
}

/// Runs the image, or iPXE in its place, while the card of this process goes on being served.
async fn run_image(image: &Arc<Image>, what: &str, clock: &Machine) -> Result<(), String> {
    let part = what.trim_start_matches("image ").to_owned();
    let image = Arc::clone(image);
    let run = std::thread::spawn(move || match part.as_str() {
        "ipxe" => link_comes_up(&image.folder, &image.folder.join("image.sock")),
        part => image.run(part),
    });
    while !run.is_finished() {
        clock.sleep(LOOK).await;
    }
    run.join()
        .unwrap_or_else(|_| Err("the thread panicked".into()))
}

/// Commands that our driver has given once all checks before the comparison have run.
const PARTS: [&str; 3] = ["RTR2RTS_QP RC", "RTR2RTS_QP UD", "SW2HW_MPT"];

/// Trace of all cards, and its file.
struct Trace {
    text: Arc<Text<BufWriter<File>>>,
    path: PathBuf,
}

impl Trace {
    /// Compares what Linux's driver has commanded so far with what ours has.
    ///
    /// Only after the other checks of the group: what a driver was not asked for can't be compared.
    fn compare(&self) -> Result<(), String> {
        self.text.flush().map_err(|error| error.to_string())?;
        let trace = fs::read_to_string(&self.path).map_err(|error| error.to_string())?;
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/hardware.md");
        let document = fs::read_to_string(document).map_err(|error| error.to_string())?;
        let [linux, ours] = ["node0", "ours"].map(|node| Commands::of(&trace, node));
        if PARTS.iter().any(|part| !ours.has(part)) {
            return Err(
                "the checks before this one must run too: they make what is compared".into(),
            );
        }
        let faults = judge(&linux, &ours, &document);
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.join("\n"))
        }
    }
}

fn start(tasks: &mut Tasks, platform: Machine) -> Result<Node<Mlx4<Machine>, Machine>, Error> {
    let card = tasks.block_on(Mlx4::start(platform.clone(), Config::default()));
    let device = Arc::new(card.map_err(verbs::Error::from)?);
    let served = Arc::clone(&device);
    tasks.spawn(async move {
        let ended = served.service().await;
        println!("our card's service ended: {ended:?}");
    });
    let port = 1;
    let node = Node {
        device,
        platform,
        port,
    };
    Ok(node)
}
