//! M and S by calls over the fabric: what [`messages`] says, carried by whatever can carry a call.

use core::future::Future;

use alloc::vec;
use alloc::vec::Vec;

use messages::memory::{
    Capacity, CapacityReply, Chunks, Lend, LendRequest, MAX_CHUNKS, Reserve, ReserveRequest,
    Return, ReturnRequest,
};
use messages::storage::{
    Allocate, AllocateFlags, AllocateRequest, Attributes, Caller, Close, FileId, FileRequest,
    Flush, FlushRequest, Flushed, Fsync, GetXattr, Getdents, GetdentsRequest, Lease, Leased, Link,
    LinkFile, LinkFileRequest, LinkRequest, ListXattr, ListXattrRequest, Make, MakeRequest, Open,
    OpenFlags, OpenRequest, Opened, Path, PathRequest, Read, ReadRequest, Readlink, Remove,
    RemoveRequest, RemoveXattr, Rename, RenameFlags, RenameRequest, SetFile, SetFileRequest,
    SetPath, SetPathRequest, SetXattr, SetXattrRequest, Stat, StatFile, StatFs, StatPath,
    StatRequest, Statfs, Symlink, Sync, Truncate, TruncateRequest, Write, WriteLease, WriteRequest,
    Written, XattrFlags, XattrName, XattrRequest,
};
use messages::{Call, Kind, MAX_MESSAGE};

use crate::error::{Error, Result, errno};
use crate::platform::{Files, Memory, Peer};

/// The longest data that one call carries; the carrier's buffers are at least this long.
pub const MAX_DATA: usize = 64 << 10;

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
    /// Calls as [`Carrier::call`] does; the peer also writes at most [`MAX_DATA`] bytes into
    /// `data`.
    fn call_for_data(
        &self,
        kind: Kind,
        request: &[u8],
        reply: &mut [u8],
        data: &mut [u8],
    ) -> impl Future<Output = core::result::Result<usize, NoAnswer>>;
    /// Calls as [`Carrier::call`] does, with `data` (at most [`MAX_DATA`] bytes) for the peer.
    fn call_with_data(
        &self,
        kind: Kind,
        request: &[u8],
        reply: &mut [u8],
        data: &[u8],
    ) -> impl Future<Output = core::result::Result<usize, NoAnswer>>;
}

/// The data of a call.
enum Data<'a> {
    None,
    Sent(&'a [u8]),
    Wanted(&'a mut [u8]),
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
        data: Data<'_>,
        done: impl FnOnce(K::Reply<'_>) -> T,
    ) -> Result<T> {
        let nonsense = Error::Nonsense {
            peer: self.peer,
            kind: K::KIND.0,
        };
        let mut asked = vec![0; MAX_MESSAGE];
        // Only a path that is too long does not fit.
        let len =
            messages::encode_request::<K>(request, &mut asked).map_err(|_| errno::ENAMETOOLONG)?;
        let mut answer = vec![0; MAX_MESSAGE];
        let (carrier, asked) = (&self.carrier, &asked[..len]);
        let sent = match data {
            Data::Wanted(data) => {
                carrier
                    .call_for_data(K::KIND, asked, &mut answer, data)
                    .await
            }
            Data::Sent(data) => {
                carrier
                    .call_with_data(K::KIND, asked, &mut answer, data)
                    .await
            }
            Data::None => carrier.call(K::KIND, asked, &mut answer).await,
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
        self.call::<Capacity, _>(&(), Data::None, |capacity| capacity)
            .await
    }
    async fn reserve(&self, chunks: u32) -> Result<()> {
        self.call::<Reserve, _>(&ReserveRequest { chunks }, Data::None, |()| ())
            .await
    }
    async fn lend(&self, pid: u32, count: u16) -> Result<Chunks> {
        self.call::<Lend, _>(&LendRequest { pid, count }, Data::None, |chunks| chunks)
            .await
    }
    async fn give_back(&self, chunks: heapless::Vec<u64, MAX_CHUNKS>) -> Result<()> {
        self.call::<Return, _>(&ReturnRequest { chunks }, Data::None, |()| ())
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
    async fn open(
        &self,
        caller: Caller<'_>,
        name: &[u8],
        flags: OpenFlags,
        mode: u32,
    ) -> Result<Opened> {
        self.call::<Open, _>(
            &OpenRequest {
                caller,
                path: path(name)?,
                flags,
                mode,
            },
            Data::None,
            |opened| opened,
        )
        .await
    }
    async fn read(&self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize> {
        let room = into.len().min(MAX_DATA);
        if room == 0 {
            return Ok(0);
        }
        let len = u32::try_from(room).expect("at most MAX_DATA");
        let request = ReadRequest { file, offset, len };
        let got = self
            .call::<Read, _>(&request, Data::Wanted(&mut into[..room]), |got| got)
            .await?;
        if got > len {
            return Err(Error::Nonsense {
                peer: self.peer,
                kind: Read::KIND.0,
            });
        }
        Ok(got as usize)
    }
    async fn stat(&self, caller: Caller<'_>, name: &[u8], follow: bool) -> Result<Stat> {
        self.call::<StatPath, _>(
            &StatRequest {
                caller,
                path: path(name)?,
                follow,
            },
            Data::None,
            |stat| stat,
        )
        .await
    }
    async fn stat_file(&self, file: FileId) -> Result<Stat> {
        self.call::<StatFile, _>(&FileRequest { file }, Data::None, |stat| stat)
            .await
    }
    async fn lease(&self, file: FileId) -> Result<Leased> {
        self.call::<Lease, _>(&FileRequest { file }, Data::None, |leased| leased)
            .await
    }
    async fn write_lease(&self, file: FileId) -> Result<Leased> {
        self.call::<WriteLease, _>(&FileRequest { file }, Data::None, |leased| leased)
            .await
    }
    async fn flush(&self, request: &FlushRequest, pieces: &[u8]) -> Result<Flushed> {
        self.call::<Flush, _>(request, Data::Sent(pieces), |flushed| flushed)
            .await
    }
    async fn getdents(&self, file: FileId, position: u64, into: &mut [u8]) -> Result<usize> {
        // Room for the errno in front.
        let max = u32::try_from(into.len().min(MAX_MESSAGE - 8)).expect("at most MAX_MESSAGE");
        let request = GetdentsRequest {
            file,
            position,
            max,
        };
        self.call::<Getdents, _>(&request, Data::None, |entries| copy(entries.0, into))
            .await
    }
    async fn readlink(&self, caller: Caller<'_>, name: &[u8], into: &mut [u8]) -> Result<usize> {
        let path = path(name)?;
        self.call::<Readlink, _>(&PathRequest { caller, path }, Data::None, |target| {
            copy(target.as_bytes(), into)
        })
        .await
    }
    async fn close(&self, file: FileId) -> Result<()> {
        self.call::<Close, _>(&FileRequest { file }, Data::None, |()| ())
            .await
    }
    async fn write(&self, file: FileId, offset: Option<u64>, bytes: &[u8]) -> Result<Written> {
        let bytes = &bytes[..bytes.len().min(MAX_DATA)];
        let append = offset.is_none();
        let offset = offset.unwrap_or(0);
        let request = WriteRequest {
            file,
            offset,
            append,
        };
        let written = self
            .call::<Write, _>(&request, Data::Sent(bytes), |written| written)
            .await?;
        let sound = written.len as usize <= bytes.len() && (append || written.offset == offset);
        if sound {
            return Ok(written);
        }
        let (peer, kind) = (self.peer, Write::KIND.0);
        Err(Error::Nonsense { peer, kind })
    }
    async fn truncate(&self, file: FileId, size: u64) -> Result<()> {
        self.call::<Truncate, _>(&TruncateRequest { file, size }, Data::None, |()| ())
            .await
    }
    async fn allocate(
        &self,
        file: FileId,
        flags: AllocateFlags,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let request = AllocateRequest {
            file,
            flags,
            offset,
            len,
        };
        self.call::<Allocate, _>(&request, Data::None, |()| ())
            .await
    }
    async fn fsync(&self, file: FileId) -> Result<()> {
        self.call::<Fsync, _>(&FileRequest { file }, Data::None, |()| ())
            .await
    }
    async fn sync(&self) -> Result<()> {
        self.call::<Sync, _>(&(), Data::None, |()| ()).await
    }
    async fn make(&self, caller: Caller<'_>, name: &[u8], mode: u32, device: u64) -> Result<()> {
        let path = path(name)?;
        self.call::<Make, _>(
            &MakeRequest {
                caller,
                path,
                mode,
                device,
            },
            Data::None,
            |()| (),
        )
        .await
    }
    async fn symlink(&self, caller: Caller<'_>, name: &[u8], target: &[u8]) -> Result<()> {
        path(target)?;
        let path = path(name)?;
        self.call::<Symlink, _>(&PathRequest { caller, path }, Data::Sent(target), |()| ())
            .await
    }
    async fn link(&self, caller: Caller<'_>, old: &[u8], follow: bool, new: &[u8]) -> Result<()> {
        path(new)?;
        let path = path(old)?;
        self.call::<Link, _>(
            &LinkRequest {
                caller,
                path,
                follow,
            },
            Data::Sent(new),
            |()| (),
        )
        .await
    }
    async fn link_file(&self, caller: Caller<'_>, file: FileId, new: &[u8]) -> Result<()> {
        path(new)?;
        self.call::<LinkFile, _>(&LinkFileRequest { caller, file }, Data::Sent(new), |()| ())
            .await
    }
    async fn rename(
        &self,
        caller: Caller<'_>,
        old: &[u8],
        new: &[u8],
        flags: RenameFlags,
    ) -> Result<u64> {
        path(new)?;
        let path = path(old)?;
        self.call::<Rename, _>(
            &RenameRequest {
                caller,
                path,
                flags,
            },
            Data::Sent(new),
            |inode| inode,
        )
        .await
    }
    async fn remove(&self, caller: Caller<'_>, name: &[u8], directory: bool) -> Result<u64> {
        let path = path(name)?;
        self.call::<Remove, _>(
            &RemoveRequest {
                caller,
                path,
                directory,
            },
            Data::None,
            |inode| inode,
        )
        .await
    }
    async fn set_path(
        &self,
        caller: Caller<'_>,
        name: &[u8],
        follow: bool,
        set: &Attributes,
    ) -> Result<()> {
        let (path, set) = (path(name)?, *set);
        self.call::<SetPath, _>(
            &SetPathRequest {
                caller,
                path,
                follow,
                set,
            },
            Data::None,
            |()| (),
        )
        .await
    }
    async fn set_file(&self, caller: Caller<'_>, file: FileId, set: &Attributes) -> Result<()> {
        let set = *set;
        self.call::<SetFile, _>(&SetFileRequest { caller, file, set }, Data::None, |()| ())
            .await
    }
    async fn get_xattr(
        &self,
        caller: Caller<'_>,
        file: FileId,
        name: XattrName<'_>,
    ) -> Result<Vec<u8>> {
        let request = XattrRequest { caller, file, name };
        self.call::<GetXattr, _>(&request, Data::None, |value| value.0.to_vec())
            .await
    }
    async fn list_xattrs(&self, caller: Caller<'_>, file: FileId) -> Result<Vec<u8>> {
        let request = ListXattrRequest { caller, file };
        self.call::<ListXattr, _>(&request, Data::None, |names| names.0.to_vec())
            .await
    }
    async fn set_xattr(
        &self,
        caller: Caller<'_>,
        file: FileId,
        name: XattrName<'_>,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        if value.len() > MAX_DATA {
            return Err(errno::E2BIG.into());
        }
        let request = SetXattrRequest {
            caller,
            file,
            flags,
            name,
        };
        self.call::<SetXattr, _>(&request, Data::Sent(value), |()| ())
            .await
    }
    async fn remove_xattr(
        &self,
        caller: Caller<'_>,
        file: FileId,
        name: XattrName<'_>,
    ) -> Result<()> {
        let request = XattrRequest { caller, file, name };
        self.call::<RemoveXattr, _>(&request, Data::None, |()| ())
            .await
    }
    async fn statfs(&self) -> Result<Statfs> {
        self.call::<StatFs, _>(&(), Data::None, |sizes| sizes).await
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
        async fn call_with_data(
            &self,
            kind: Kind,
            request: &[u8],
            reply: &mut [u8],
            data: &[u8],
        ) -> core::result::Result<usize, NoAnswer> {
            assert!(data.len() <= MAX_DATA);
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
            now(storage(None).stat(Caller::ROOT, &long, true)),
            Err(errno::ENAMETOOLONG.into())
        );
    }
}
