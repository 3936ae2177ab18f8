//! M and S by calls over the fabric: what [`messages`] says, carried by whatever can carry a call.

use core::future::Future;

use alloc::vec;

use messages::memory::{
    Capacity, CapacityReply, Chunks, Lend, LendRequest, MAX_CHUNKS, Reserve, ReserveRequest, Return,
    ReturnRequest,
};
use messages::storage::{
    Close, FileId, FileRequest, Getdents, GetdentsRequest, Open, OpenFlags, OpenRequest, Opened, Path, Read,
    ReadRequest, Readlink, Stat, StatFile, StatPath, StatRequest,
};
use messages::{Call, Kind, MAX_MESSAGE};

use crate::error::{Error, Result, errno};
use crate::platform::{Files, Memory, Peer};

/// The longest data that one read brings; the carrier's buffers are at least this long.
pub const MAX_READ: usize = 64 << 10;

/// The peer did not answer within the carrier's deadline; the carrier has logged why.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no answer")]
pub struct NoAnswer;

/// Carries calls to one peer. Each call ends within a deadline of the carrier.
pub trait Carrier {
    /// Sends `request` and puts the reply into `reply`; how long that is.
    fn call(
        &self,
        kind: Kind,
        request: &[u8],
        reply: &mut [u8],
    ) -> impl Future<Output = core::result::Result<usize, NoAnswer>>;
    /// As [`Carrier::call`], for a call whose peer also writes data (at most [`MAX_READ`] bytes) into `data`.
    fn call_for_data(
        &self,
        kind: Kind,
        request: &[u8],
        reply: &mut [u8],
        data: &mut [u8],
    ) -> impl Future<Output = core::result::Result<usize, NoAnswer>>;
}

/// A peer reached by a carrier.
pub struct Remote<C> {
    peer: Peer,
    carrier: C,
}

impl<C: Carrier> Remote<C> {
    /// `carrier` carries to `peer`.
    pub fn new(peer: Peer, carrier: C) -> Self {
        Self { peer, carrier }
    }

    /// Makes call `K`; `done` takes what it needs of the reply.
    async fn call<K: Call, T>(
        &self,
        request: &K::Request<'_>,
        data: &mut [u8],
        done: impl FnOnce(K::Reply<'_>) -> T,
    ) -> Result<T> {
        let nonsense = Error::Nonsense {
            peer: self.peer,
            kind: K::KIND.0,
        };
        let mut asked = vec![0; MAX_MESSAGE];
        // Only a path that is too long does not fit.
        let len = messages::encode_request::<K>(request, &mut asked).map_err(|_| errno::ENAMETOOLONG)?;
        let mut answer = vec![0; MAX_MESSAGE];
        let sent = if data.is_empty() {
            self.carrier.call(K::KIND, &asked[..len], &mut answer).await
        } else {
            self.carrier
                .call_for_data(K::KIND, &asked[..len], &mut answer, data)
                .await
        };
        let got = sent.map_err(|NoAnswer| Error::Lost(self.peer))?;
        let answer = answer.get(..got).ok_or(nonsense)?;
        let reply = messages::decode_reply::<K>(answer).map_err(|cause| {
            log::error!("{} answered {}: {cause}", self.peer, K::NAME);
            nonsense
        })?;
        Ok(done(reply?))
    }
}

impl<C: Carrier> Memory for Remote<C> {
    async fn capacity(&self) -> Result<CapacityReply> {
        self.call::<Capacity, _>(&(), &mut [], |capacity| capacity).await
    }
    async fn reserve(&self, chunks: u32) -> Result<()> {
        self.call::<Reserve, _>(&ReserveRequest { chunks }, &mut [], |()| ())
            .await
    }
    async fn lend(&self, pid: u32, count: u16) -> Result<Chunks> {
        self.call::<Lend, _>(&LendRequest { pid, count }, &mut [], |chunks| chunks)
            .await
    }
    async fn give_back(&self, chunks: heapless::Vec<u64, MAX_CHUNKS>) -> Result<()> {
        self.call::<Return, _>(&ReturnRequest { chunks }, &mut [], |()| ())
            .await
    }
}

/// A path that a program gave: what the wire does not take is a path that does not exist.
fn path(bytes: &[u8]) -> Result<Path<'_>> {
    Path::new(bytes).map_err(|_| errno::ENAMETOOLONG.into())
}

/// Copies as much as there is room for.
fn copy(from: &[u8], into: &mut [u8]) -> usize {
    let len = from.len().min(into.len());
    into[..len].copy_from_slice(&from[..len]);
    len
}

impl<C: Carrier> Files for Remote<C> {
    async fn open(&self, name: &[u8], flags: OpenFlags) -> Result<Opened> {
        self.call::<Open, _>(
            &OpenRequest {
                path: path(name)?,
                flags,
                mode: 0,
            },
            &mut [],
            |opened| opened,
        )
        .await
    }
    async fn read(&self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize> {
        let room = into.len().min(MAX_READ);
        if room == 0 {
            return Ok(0);
        }
        let len = u32::try_from(room).expect("at most MAX_READ");
        let request = ReadRequest { file, offset, len };
        let got = self
            .call::<Read, _>(&request, &mut into[..room], |got| got)
            .await?;
        if got > len {
            return Err(Error::Nonsense {
                peer: self.peer,
                kind: Read::KIND.0,
            });
        }
        Ok(got as usize)
    }
    async fn stat(&self, name: &[u8], follow: bool) -> Result<Stat> {
        self.call::<StatPath, _>(
            &StatRequest {
                path: path(name)?,
                follow,
            },
            &mut [],
            |stat| stat,
        )
        .await
    }
    async fn stat_file(&self, file: FileId) -> Result<Stat> {
        self.call::<StatFile, _>(&FileRequest { file }, &mut [], |stat| stat)
            .await
    }
    async fn getdents(&self, file: FileId, position: u64, into: &mut [u8]) -> Result<usize> {
        // Room for the errno in front.
        let max = u32::try_from(into.len().min(MAX_MESSAGE - 8)).expect("at most MAX_MESSAGE");
        let request = GetdentsRequest { file, position, max };
        self.call::<Getdents, _>(&request, &mut [], |entries| copy(entries.0, into))
            .await
    }
    async fn readlink(&self, name: &[u8], into: &mut [u8]) -> Result<usize> {
        self.call::<Readlink, _>(&path(name)?, &mut [], |target| copy(target.as_bytes(), into))
            .await
    }
    async fn close(&self, file: FileId) -> Result<()> {
        self.call::<Close, _>(&FileRequest { file }, &mut [], |()| ())
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use messages::Errno;

    use super::*;

    /// Answers every call with the same bytes and data, and keeps what was asked.
    #[derive(Default)]
    struct Parrot {
        answer: Option<Vec<u8>>,
        data: Vec<u8>,
        asked: RefCell<Vec<(Kind, Vec<u8>)>>,
    }

    impl Carrier for Parrot {
        async fn call(
            &self,
            kind: Kind,
            request: &[u8],
            reply: &mut [u8],
        ) -> core::result::Result<usize, NoAnswer> {
            self.asked.borrow_mut().push((kind, request.to_vec()));
            let answer = self.answer.as_ref().ok_or(NoAnswer)?;
            reply[..answer.len()].copy_from_slice(answer);
            Ok(answer.len())
        }
        async fn call_for_data(
            &self,
            kind: Kind,
            request: &[u8],
            reply: &mut [u8],
            data: &mut [u8],
        ) -> core::result::Result<usize, NoAnswer> {
            data[..self.data.len()].copy_from_slice(&self.data);
            self.call(kind, request, reply).await
        }
    }

    fn storage(answer: Option<&[u8]>) -> Remote<Parrot> {
        let answer = answer.map(<[u8]>::to_vec);
        Remote::new(
            Peer::Storage,
            Parrot {
                answer,
                data: b"data".to_vec(),
                ..Parrot::default()
            },
        )
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("a parrot answers at once"),
        }
    }

    #[test]
    fn data_of_a_read_arrives_in_place() {
        let remote = storage(Some(&[0, 0, 0, 0, 4, 0, 0, 0]));
        let mut into = [0; 10];
        assert_eq!(now(remote.read(FileId(3), 7, &mut into)), Ok(4));
        assert_eq!(&into[..4], b"data");
        assert_eq!(remote.carrier.asked.borrow()[0].0, Read::KIND);
    }

    #[test]
    fn peer_s_errors_reach_the_program_and_nonsense_does_not() {
        let mut into = [0; 10];
        let failed = storage(Some(&[2, 0, 0, 0]));
        assert_eq!(
            now(failed.read(FileId(3), 7, &mut into)),
            Err(Error::Errno(Errno::ENOENT))
        );
        let nonsense = Err(Error::Nonsense {
            peer: Peer::Storage,
            kind: Read::KIND.0,
        });
        for answer in [
            &[0u8, 0, 0][..],
            &[0, 0, 0, 0, 11, 0, 0, 0],
            &[0, 0, 0, 0, 4, 0, 0, 0, 1],
            &[0xff; 4],
        ] {
            assert_eq!(
                now(storage(Some(answer)).read(FileId(3), 7, &mut into)),
                nonsense,
                "{answer:?}"
            );
        }
        assert_eq!(
            now(storage(None).close(FileId(3))),
            Err(Error::Lost(Peer::Storage))
        );
    }

    #[test]
    fn paths_that_the_wire_does_not_take_are_the_program_s_error() {
        let long = vec![b'x'; 5_000];
        assert_eq!(
            now(storage(None).stat(&long, true)),
            Err(errno::ENAMETOOLONG.into())
        );
    }
}
