//! Extended attributes: those of S's files, asked of S by an open file. Other files have none, and
//! none can be given one.

use alloc::vec;
use alloc::vec::Vec;

use linux_raw_sys::general as nr;
use messages::storage::{FileId, OpenFlags, PATH_MAX, XATTR_NAME_MAX, XattrFlags, XattrName};

use super::path::{AT_FDCWD, EMPTY_PATH, NOFOLLOW};
use super::{Args, int};
use crate::error::{Error, Result, errno};
use crate::files::{Kind, OpenFile};
use crate::platform::Files;
use crate::process::Node;
use crate::pseudo::Walked;
use crate::thread::Thread;
use crate::tmpfs::Found;

/// The longest value.
const VALUE_MAX: u64 = 65_536;

/// The file that a call is about.
enum Subject {
    /// A file of S that is open.
    Open(FileId),
    /// One that was opened for the call.
    Opened(FileId),
    /// A symbolic link of S's, for which users may not set any (EPERM).
    Link,
    /// One that has no attributes.
    Other,
}

impl Subject {
    fn of(file: &OpenFile) -> Self {
        match &file.kind {
            Kind::File(of) | Kind::Folder(of) => Self::Open(of.id),
            _ => Self::Other,
        }
    }
}

/// Way in which a call names a file.
#[derive(Clone, Copy)]
enum By {
    /// The number of an open file.
    Number(u64),
    /// A path from a folder, with flags of [`NOFOLLOW`] and [`EMPTY_PATH`].
    Path { dir: u64, path: u64, flags: u64 },
}

fn by(number: u32, file: u64) -> By {
    let flags = match number {
        nr::__NR_fgetxattr | nr::__NR_flistxattr | nr::__NR_fsetxattr | nr::__NR_fremovexattr => {
            return By::Number(file);
        }
        nr::__NR_lgetxattr | nr::__NR_llistxattr | nr::__NR_lsetxattr | nr::__NR_lremovexattr => {
            NOFOLLOW
        }
        _ => 0,
    };
    By::Path {
        dir: AT_FDCWD,
        path: file,
        flags,
    }
}

impl<N: Node> Thread<N> {
    /// Answers the calls of this family; `None` for others.
    pub(super) async fn attribute_call(&self, number: u32, a: Args) -> Option<Result<u64>> {
        let [file, name, value, len, flags, _] = a;
        Some(match number {
            nr::__NR_getxattr | nr::__NR_lgetxattr | nr::__NR_fgetxattr => {
                self.get_attribute(by(number, file), name, value, len).await
            }
            nr::__NR_removexattr | nr::__NR_lremovexattr | nr::__NR_fremovexattr => {
                self.remove_attribute(by(number, file), name).await
            }
            nr::__NR_listxattr | nr::__NR_llistxattr | nr::__NR_flistxattr => {
                self.list_attributes(by(number, file), name, value).await
            }
            nr::__NR_setxattr | nr::__NR_lsetxattr | nr::__NR_fsetxattr => {
                self.set_attribute(by(number, file), name, (value, len), flags)
                    .await
            }
            nr::__NR_setxattrat
            | nr::__NR_getxattrat
            | nr::__NR_listxattrat
            | nr::__NR_removexattrat => self.attribute_at(number, a).await,
            _ => return None,
        })
    }

    /// Answers the calls that take a folder and flags.
    async fn attribute_at(
        &self,
        number: u32,
        [dir, path, flags, name, arguments, size]: Args,
    ) -> Result<u64> {
        if flags & !(NOFOLLOW | EMPTY_PATH) != 0 {
            return Err(errno::EINVAL.into());
        }
        let by = By::Path { dir, path, flags };
        match number {
            nr::__NR_listxattrat => self.list_attributes(by, name, arguments).await,
            nr::__NR_removexattrat => self.remove_attribute(by, name).await,
            _ => {
                let (value, len, flags) = self.attribute_arguments(arguments, size).await?;
                if number == nr::__NR_setxattrat {
                    return self.set_attribute(by, name, (value, len), flags).await;
                }
                if flags != 0 {
                    return Err(errno::EINVAL.into());
                }
                self.get_attribute(by, name, value, len).await
            }
        }
    }

    /// Reads a `struct xattr_args`: the value's address, its length, flags.
    async fn attribute_arguments(&self, addr: u64, size: u64) -> Result<(u64, u64, u64)> {
        const KNOWN: u64 = 16;
        if size < KNOWN {
            return Err(errno::EINVAL.into());
        }
        if size > 4096 {
            return Err(errno::E2BIG.into());
        }
        let value = self.memory.read_u64(addr).await?;
        let rest = self.memory.read_u64(addr.saturating_add(8)).await?;
        Ok((value, rest & 0xffff_ffff, rest >> 32))
    }

    /// Returns the file that a call is about.
    async fn subject(&self, by: By) -> Result<Subject> {
        let (dir, addr, flags) = match by {
            By::Number(file) => return Ok(Subject::of(&*self.file(file)?)),
            By::Path { dir, path, flags } => (dir, path, flags),
        };
        let follow = flags & NOFOLLOW == 0;
        let empty = flags & EMPTY_PATH != 0
            && (addr == 0 || self.memory.read_string(addr, PATH_MAX).await?.is_empty());
        let path = if !empty {
            self.path(dir, addr, follow).await?
        } else if dir & 0xffff_ffff == AT_FDCWD & 0xffff_ffff {
            self.cwd()
        } else {
            return Ok(Subject::of(&*self.file(dir)?));
        };
        let path = match self.pseudo(&path, follow)? {
            Walked::Entry(..) => return Ok(Subject::Other),
            Walked::Elsewhere(path) => path,
        };
        let path = match self
            .node
            .kernel()
            .tmpfs()
            .find(&path, follow, &self.creds())?
        {
            Found::Storage(path) => path,
            Found::Here(_) => return Ok(Subject::Other),
            Found::Missing(..) => return Err(errno::ENOENT.into()),
        };
        let mut flags = OpenFlags::empty();
        flags.set(OpenFlags::NOFOLLOW, !follow);
        let (asker, files) = (self.asker(), self.node.files());
        match files.open(asker.caller(), &path, flags, 0).await {
            Err(Error::Errno(errno::ELOOP)) if !follow => Ok(Subject::Link),
            opened => Ok(Subject::Opened(opened?.file)),
        }
    }

    fn done(&self, subject: &Subject) {
        if let Subject::Opened(file) = subject {
            self.node.kernel().closing.add(*file);
        }
    }

    /// Reads an attribute's name.
    async fn attribute_name(&self, name: u64) -> Result<Vec<u8>> {
        let name = match self.memory.read_string(name, XATTR_NAME_MAX).await {
            Err(Error::Errno(errno::ENAMETOOLONG)) => return Err(errno::ERANGE.into()),
            name => name?,
        };
        // What is no name for the wire is none for Linux either.
        XattrName::new(&name).map_err(|_| errno::ERANGE)?;
        Ok(name)
    }

    /// Gives bytes to the program, which may ask for their number alone.
    async fn put_attribute(&self, bytes: &[u8], into: u64, room: u64) -> Result<u64> {
        let len = bytes.len() as u64;
        if room == 0 {
            return Ok(len);
        }
        if len > room {
            return Err(errno::ERANGE.into());
        }
        self.memory.write(into, bytes).await?;
        Ok(len)
    }

    async fn get_attribute(&self, by: By, name: u64, into: u64, room: u64) -> Result<u64> {
        let name = self.attribute_name(name).await?;
        let subject = self.subject(by).await?;
        let value = match &subject {
            Subject::Open(file) | Subject::Opened(file) => {
                let name = XattrName::new(&name).map_err(|_| errno::ERANGE)?;
                let asker = self.asker();
                let files = self.node.files();
                files.get_xattr(asker.caller(), *file, name).await
            }
            Subject::Link | Subject::Other => Err(errno::ENODATA.into()),
        };
        self.done(&subject);
        self.put_attribute(&value?, into, room).await
    }

    async fn list_attributes(&self, by: By, into: u64, room: u64) -> Result<u64> {
        let subject = self.subject(by).await?;
        let names = match &subject {
            Subject::Open(file) | Subject::Opened(file) => {
                let asker = self.asker();
                self.node.files().list_xattrs(asker.caller(), *file).await
            }
            Subject::Link | Subject::Other => Ok(Vec::new()),
        };
        self.done(&subject);
        self.put_attribute(&names?, into, room).await
    }

    async fn remove_attribute(&self, by: By, name: u64) -> Result<u64> {
        let name = self.attribute_name(name).await?;
        let subject = self.subject(by).await?;
        let removed = match &subject {
            Subject::Open(file) | Subject::Opened(file) => {
                let name = XattrName::new(&name).map_err(|_| errno::ERANGE)?;
                let asker = self.asker();
                let files = self.node.files();
                files.remove_xattr(asker.caller(), *file, name).await
            }
            Subject::Link => Err(errno::EPERM.into()),
            Subject::Other => Err(errno::ENODATA.into()),
        };
        self.done(&subject);
        self.node.kernel().changes.note();
        removed.map(|()| 0)
    }

    async fn set_attribute(
        &self,
        by: By,
        name: u64,
        (value, len): (u64, u64),
        flags: u64,
    ) -> Result<u64> {
        let flags = u8::try_from(int(flags))
            .ok()
            .and_then(XattrFlags::from_bits);
        let flags = flags.ok_or(errno::EINVAL)?;
        let name = self.attribute_name(name).await?;
        if len > VALUE_MAX {
            return Err(errno::E2BIG.into());
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| errno::E2BIG)?];
        self.memory.read(value, &mut bytes).await?;
        let subject = self.subject(by).await?;
        let set = match &subject {
            Subject::Open(file) | Subject::Opened(file) => {
                let name = XattrName::new(&name).map_err(|_| errno::ERANGE)?;
                let asker = self.asker();
                let files = self.node.files();
                files
                    .set_xattr(asker.caller(), *file, name, &bytes, flags)
                    .await
            }
            Subject::Link => Err(errno::EPERM.into()),
            Subject::Other => Err(errno::EOPNOTSUPP.into()),
        };
        self.done(&subject);
        self.node.kernel().changes.note();
        set.map(|()| 0)
    }
}
