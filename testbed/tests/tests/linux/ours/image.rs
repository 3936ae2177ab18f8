//! Our driver in a unikernel: `testbed/probe`'s image in QEMU, on a card of its own beside the
//! guest's.
//!
//! The stream of its pingpongs is a serial port of its machine; what goes through it is passed on
//! here from and to TCP.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use probe::pingpong::ADDRESS_LEN;
use verbs::Gid;

use super::companion::{GUEST_ADDRESS, IMAGE_ADDRESS};
use super::driver::{CONNECTED, DATAGRAM, PINGS, ROUNDS};

/// Time limit of a run, in seconds, after which QEMU is ended.
const LIMIT: &str = "100";
/// Deadline of each step of a run.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// QEMU's exit status when the image ends with success.
const SUCCESS: i32 = 1;
/// The client's last word, with its NUL.
const DONE_LEN: usize = 5;

/// Parameters of a run of the image.
pub(crate) struct Image {
    /// The folder with the card's socket, `image.sock`.
    pub(crate) folder: PathBuf,
    /// Listener for the guests' pingpongs.
    pub(crate) pingpong: TcpListener,
    /// Host port that QEMU forwards to the guest's pingpong.
    pub(crate) forwarded: u16,
    /// The guest's port.
    pub(crate) guest: Gid,
}

impl Image {
    /// Runs the image for one part.
    ///
    /// # Errors
    ///
    /// Why it failed, with the end of its log.
    pub(crate) fn run(&self, part: &str) -> Result<(), String> {
        let (rounds, size) = match part {
            "rc-client" | "rc-server" => (ROUNDS, CONNECTED),
            "ud-client" | "ud-server" => (ROUNDS, DATAGRAM),
            _ => (PINGS, 0),
        };
        let line = format!(
            "part={part} rounds={rounds} size={size} peer={} to={GUEST_ADDRESS} from={IMAGE_ADDRESS} log=debug",
            self.guest
        );
        let log = self.folder.join("image.log");
        let stream = self.folder.join("stream.sock");
        // What an earlier run left.
        let _ = fs::remove_file(&stream);
        let mut qemu = self.qemu(&line, &log, &stream)?;
        let mut child = qemu
            .spawn()
            .map_err(|error| format!("QEMU does not start: {error}"))?;
        // Open until the image has ended: QEMU drops what it has not passed on yet when the other
        // end closes.
        let passed = self.pass(part, &stream);
        if passed.is_err() {
            // It has nobody to speak to.
            let _ = child.kill();
        }
        let status = child.wait().map_err(|error| error.to_string())?;
        let log = fs::read_to_string(log).unwrap_or_default();
        passed.map_err(|error| format!("the stream: {error}\n{log}"))?;
        match status.code() {
            Some(SUCCESS) => Ok(()),
            _ => Err(format!("the image ended with {status}\n{log}")),
        }
    }

    fn qemu(&self, line: &str, log: &Path, stream: &Path) -> Result<Command, String> {
        let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
        let (words, image) = (variable("TESSERA_QEMU")?, variable("TESSERA_PROBE")?);
        let card = self.folder.join("image.sock");
        let device = format!(
            r#"{{"driver":"vfio-user-pci","addr":"0x8","socket":{{"type":"unix","path":"{}"}}}}"#,
            card.display()
        );
        let machine = "-accel tcg,thread=multi -cpu max -machine q35,memory-backend=mem -m 256M -nodefaults \
            -no-user-config -display none -no-reboot -object memory-backend-memfd,id=mem,size=256M,share=on \
            -device isa-debug-exit,iobase=0xf4,iosize=4 -device virtio-serial-pci,id=bus,addr=0x10,max_ports=2,\
            disable-legacy=on -device virtserialport,nr=1,chardev=stream,bus=bus.0";
        let mut command = Command::new("timeout");
        command
            .arg(LIMIT)
            .args(words.split_whitespace())
            .arg("-chardev")
            .arg(format!(
                "socket,id=stream,path={},server=on,wait=off",
                stream.display()
            ))
            .args(machine.split_whitespace())
            .arg("-serial")
            .arg(format!("file:{}", log.display()))
            .args(["-device", &device, "-append", line, "-kernel"])
            .arg(image)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Passes a pingpong's exchange of addresses on; gives the image's end of it.
    fn pass(&self, part: &str, stream: &Path) -> io::Result<Option<UnixStream>> {
        let pass = match part {
            "rc-client" | "ud-client" => Self::pass_call,
            "rc-server" | "ud-server" => Self::pass_answer,
            _ => return Ok(None),
        };
        let mut image = serial(stream)?;
        pass(self, &mut image)?;
        Ok(Some(image))
    }

    /// Passes on a call of the image. The guest's tool may not listen yet: QEMU then takes the
    /// connection all the same, and ends it.
    fn pass_call(&self, image: &mut UnixStream) -> io::Result<()> {
        let mut address = [0; ADDRESS_LEN];
        image.read_exact(&mut address)?;
        let deadline = Instant::now() + PATIENCE;
        let (mut guest, answer) = loop {
            let mut guest = patient(TcpStream::connect(("127.0.0.1", self.forwarded))?)?;
            let mut answer = [0; ADDRESS_LEN];
            let asked = guest
                .write_all(&address)
                .and_then(|()| guest.read_exact(&mut answer));
            match asked {
                Ok(()) => break (guest, answer),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(LOOK * 10),
            }
        };
        image.write_all(&answer)?;
        let mut done = [0; DONE_LEN];
        image.read_exact(&mut done)?;
        guest.write_all(&done)
    }

    /// Passes on a call of the guest's tool.
    fn pass_answer(&self, image: &mut UnixStream) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let guest = loop {
            match self.pingpong.accept() {
                Ok((guest, _)) => break guest,
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(LOOK),
            }
        };
        guest.set_nonblocking(false)?;
        let mut guest = patient(guest)?;
        let mut address = [0; ADDRESS_LEN];
        guest.read_exact(&mut address)?;
        image.write_all(&address)?;
        image.read_exact(&mut address)?;
        guest.write_all(&address)?;
        let mut done = [0; DONE_LEN];
        guest.read_exact(&mut done)?;
        image.write_all(&done)
    }
}

/// Connects to the image's serial port, as soon as QEMU has made it.
fn serial(path: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => sleep(LOOK),
        }
    }
}

fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}
