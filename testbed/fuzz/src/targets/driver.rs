//! mlx4: the driver and a card that now and then answers something else than it should.
//!
//! The card is the model; a script from the input changes what the driver reads of its registers
//! and of memory that the card writes. Bring-up, a queue pair, a region, datagrams and tear-down
//! must each end, well or not, and nothing panics.

use std::sync::{Arc, Mutex, PoisonError};

use hal::{BusAddr, ConfigSpace, DmaBuffer, Duration, Error, Instant, Platform, Registers};
use harness::{Machine, Testbed};
use mlx4::{Config, Mlx4};
use verbs::{
    Access, Completion, Device, Domain, Failure, Guid, Lid, PKey, PathToPeer, Payload, Psn,
    QpConfig, QpKind, QueueSet, RcParameters, SendOp, SendRequest, Sge,
};

use crate::input::Input;

/// Script of changes to what the card returns: the values, and the reads between them. At its end
/// the card is honest.
struct Script {
    left: Vec<u8>,
    wait: u32,
}

impl Script {
    fn new(bytes: &[u8]) -> Self {
        let mut script = Self {
            left: bytes.iter().rev().copied().collect(),
            wait: u32::MAX,
        };
        script.rest();
        script
    }

    /// Up to 65,025 reads until the next change: the square of a byte, so that small numbers are
    /// finely told.
    fn rest(&mut self) {
        self.wait = self
            .left
            .pop()
            .map_or(u32::MAX, |wait| u32::from(wait) * u32::from(wait));
    }

    fn spoil(&mut self, bytes: &mut [u8]) {
        if self.wait > 0 {
            self.wait -= 1;
            return;
        }
        let (at, value) = (self.left.pop().unwrap_or(0), self.left.pop().unwrap_or(0));
        let len = bytes.len().max(1);
        match bytes.get_mut(usize::from(at) % len) {
            Some(_) if at == 0xff => bytes.fill(value),
            Some(byte) => *byte = value,
            None => {}
        }
        self.rest();
    }
}

#[derive(Clone)]
struct Spoiled<T> {
    inner: T,
    script: Arc<Mutex<Script>>,
}

impl<T> Spoiled<T> {
    fn with<U>(&self, inner: U) -> Spoiled<U> {
        Spoiled {
            inner,
            script: Arc::clone(&self.script),
        }
    }

    fn spoil(&self, bytes: &mut [u8]) {
        self.script
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spoil(bytes);
    }

    fn spoiled(&self, value: u32) -> u32 {
        let mut bytes = value.to_le_bytes();
        self.spoil(&mut bytes);
        u32::from_le_bytes(bytes)
    }
}

impl<B: Registers> Registers for Spoiled<B> {
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn read_u32(&self, offset: usize) -> u32 {
        self.spoiled(self.inner.read_u32(offset))
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.inner.write_u32(offset, value);
    }
    fn write_u64(&self, offset: usize, value: u64) {
        self.inner.write_u64(offset, value);
    }
}

impl<C: ConfigSpace> ConfigSpace for Spoiled<C> {
    fn read_u32(&self, offset: u16) -> u32 {
        self.spoiled(self.inner.read_u32(offset))
    }
    fn write_u32(&self, offset: u16, value: u32) {
        self.inner.write_u32(offset, value);
    }
}

impl<B: DmaBuffer> DmaBuffer for Spoiled<B> {
    fn bus_addr(&self) -> BusAddr {
        self.inner.bus_addr()
    }
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        self.inner.read(offset, into);
        self.spoil(into);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.inner.write(offset, from);
    }
    fn fill(&self, offset: usize, len: usize, value: u8) {
        self.inner.fill(offset, len, value);
    }
    fn read_u32(&self, offset: usize) -> u32 {
        self.spoiled(self.inner.read_u32(offset))
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.inner.write_u32(offset, value);
    }
    fn read_u64(&self, offset: usize) -> u64 {
        let mut bytes = self.inner.read_u64(offset).to_le_bytes();
        self.spoil(&mut bytes);
        u64::from_le_bytes(bytes)
    }
    fn write_u64(&self, offset: usize, value: u64) {
        self.inner.write_u64(offset, value);
    }
}

impl Platform for Spoiled<Machine> {
    type Bar = Spoiled<<Machine as Platform>::Bar>;
    type Config = Spoiled<<Machine as Platform>::Config>;
    type Buffer = Spoiled<<Machine as Platform>::Buffer>;
    type Vector = <Machine as Platform>::Vector;

    fn map_bar(&self, index: u8) -> Result<Self::Bar, Error> {
        Ok(self.with(self.inner.map_bar(index)?))
    }
    fn config(&self) -> Self::Config {
        self.with(self.inner.config())
    }
    fn alloc(&self, len: usize, align: usize) -> Result<Self::Buffer, Error> {
        Ok(self.with(self.inner.alloc(len, align)?))
    }
    fn enable_vectors(
        &self,
        count: u16,
    ) -> Result<impl IntoIterator<Item = Self::Vector> + use<>, Error> {
        self.inner.enable_vectors(count)
    }
    fn now(&self) -> Instant {
        self.inner.now()
    }
    fn sleep(&self, span: Duration) -> impl Future<Output = ()> + Send {
        self.inner.sleep(span)
    }
}

/// Uses a card that is up: a queue pair connected to itself, a message, a datagram.
async fn use_it(
    device: &Mlx4<Spoiled<Machine>>,
    platform: &Spoiled<Machine>,
) -> Result<(), verbs::Error> {
    let mut queues = device.create_queues(64, 0).await?;
    let config = QpConfig {
        kind: QpKind::ReliableConnection,
        domain: Domain::default(),
        port: 1,
        send_depth: 8,
        receive_depth: 8,
        send_sge: 1,
        receive_sge: 1,
        inline: 32,
        remote_access: Access::default(),
    };
    let (slot, qpn) = device.create_qp(&mut queues, &config).await?;
    let memory = platform
        .alloc(4096, 4096)
        .map_err(|_| verbs::Error::NoMemory { bytes: 4096 })?;
    let access = Access {
        local_write: true,
        ..Access::default()
    };
    let region = device
        .register(Domain::default(), memory.bus_addr().0, 4096, access)
        .await?;
    let address = device.port(1).await?.address;
    let path = PathToPeer {
        address,
        qpn,
        their_psn: Psn(1),
        our_psn: Psn(1),
        mtu: 1024,
        sl: 0,
    };
    let persistence = RcParameters {
        ack_timeout: 10,
        retry_count: 1,
        rnr_retry: 1,
        min_rnr_timer: 1,
        reads_as_requester: 1,
        reads_as_responder: 1,
    };
    device.ready_to_receive(qpn, &path, &persistence).await?;
    device.ready_to_send(qpn, Some(&path), &persistence).await?;
    let piece = Sge {
        addr: region.addr,
        len: 64,
        lkey: region.lkey,
    };
    let mut done = [Completion::EMPTY; 8];
    for id in 0..4 {
        let _ = queues.post_receive(slot, id, &[piece]);
        let request = SendRequest {
            id,
            op: SendOp::Send { imm: None },
            payload: Payload::Gather(&[piece]),
            signalled: true,
            solicited: false,
            fence: false,
            to: None,
        };
        let _ = queues.post_send(slot, &request);
        queues.ring(slot);
        queues.arm(false);
        platform.sleep(Duration::from_micros(20)).await;
        while !matches!(queues.poll(&mut done), Ok(0)) {}
    }
    device
        .send_mad(1, Lid(1).into(), PKey::DEFAULT, &[1; 256])
        .await?;
    device
        .service_once()
        .await
        .map_err(|_| verbs::Error::Failed(Failure::Earlier))?;
    while device.take_event().is_some() {}
    while device.take_mad(1).is_some() {}
    device.fail_qp(qpn).await?;
    device.reset_qp(qpn).await?;
    queues.forget(slot);
    device.init_qp(qpn, Domain(3)).await?;
    device.deregister(&region).await?;
    device.destroy_qp(&mut queues, slot).await?;
    device.destroy_queues(queues).await
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    // Honest while it is brought up, or not.
    let early = input.bool();
    let script = Arc::new(Mutex::new(Script::new(if early {
        input.rest()
    } else {
        &[]
    })));
    let mut bed = Testbed::default();
    let platform = Spoiled {
        inner: bed.add_machine("node", Guid(0x0002_c903_0000_1000)),
        script: Arc::clone(&script),
    };
    let Ok(device) = bed.block_on(Mlx4::start(platform.clone(), Config::default())) else {
        return;
    };
    bed.block_on(async {
        for _ in 0..40 {
            let _ = device.service_once().await;
            platform.sleep(Duration::from_micros(100)).await;
        }
    });
    if !early {
        *script.lock().unwrap_or_else(PoisonError::into_inner) = Script::new(input.rest());
    }
    let _ = bed.block_on(use_it(&device, &platform));
    let _ = bed.block_on(device.stop());
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![
        vec![0],
        vec![1],
        vec![0, 3, 0xff, 0xff, 3, 0, 0, 5, 1, 0x80],
        vec![1, 4, 0xff, 0xff],
        vec![1, 6, 0, 0, 6, 31, 0x80, 8, 3, 0x55],
        vec![0, 2, 0, 0xfe, 2, 31, 0, 2, 4, 4, 2, 7, 7],
    ]
}
