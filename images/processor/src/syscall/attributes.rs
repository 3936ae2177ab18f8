//! Extended attributes: no file has any, and none can be given one.

use alloc::vec;

use linux_raw_sys::general as nr;

use super::Args;
use super::path::{AT_FDCWD, EMPTY_PATH, NOFOLLOW};
use crate::error::{Result, errno};
use crate::process::Node;
use crate::thread::Thread;

/// The longest name (`XATTR_NAME_MAX`), and the longest value.
const NAME_MAX: usize = 255;
const VALUE_MAX: u64 = 65_536;
const XATTR_CREATE: u64 = 1;
const XATTR_REPLACE: u64 = 2;

impl<N: Node> Thread<N> {
    /// Answers the calls of this family; `None` for others.
    pub(super) async fn attribute_call(&self, number: u32, a: Args) -> Option<Result<u64>> {
        let [file, name, ..] = a;
        let answered = match number {
            nr::__NR_getxattr | nr::__NR_lgetxattr | nr::__NR_fgetxattr => self
                .attribute(number, file, name)
                .await
                .and(Err(errno::ENODATA.into())),
            nr::__NR_removexattr | nr::__NR_lremovexattr | nr::__NR_fremovexattr => self
                .attribute(number, file, name)
                .await
                .and(Err(errno::ENODATA.into())),
            nr::__NR_listxattr | nr::__NR_llistxattr | nr::__NR_flistxattr => {
                self.attributed(number, file).await.map(|()| 0)
            }
            nr::__NR_setxattr | nr::__NR_lsetxattr | nr::__NR_fsetxattr => {
                self.set_attribute(number, a).await
            }
            nr::__NR_setxattrat
            | nr::__NR_getxattrat
            | nr::__NR_listxattrat
            | nr::__NR_removexattrat => self.attribute_at(number, a).await,
            _ => return None,
        };
        Some(answered)
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
        if number == nr::__NR_listxattrat {
            return self.status_at(dir, path, flags).await.map(|_| 0);
        }
        if number != nr::__NR_removexattrat {
            self.check_arguments(number, arguments, size).await?;
        }
        self.attribute_name(name).await?;
        self.status_at(dir, path, flags).await?;
        Err(match number {
            nr::__NR_setxattrat => errno::EOPNOTSUPP.into(),
            _ => errno::ENODATA.into(),
        })
    }

    /// Checks a `struct xattr_args`: value, its length, flags.
    async fn check_arguments(&self, number: u32, addr: u64, size: u64) -> Result<()> {
        const KNOWN: u64 = 16;
        if !(KNOWN..=4096).contains(&size) {
            let errno = if size < KNOWN {
                errno::EINVAL
            } else {
                errno::E2BIG
            };
            return Err(errno.into());
        }
        let words = self.memory.read_u64(addr.saturating_add(8)).await?;
        let (len, flags) = (words & 0xffff_ffff, words >> 32);
        let known = match number {
            nr::__NR_setxattrat => XATTR_CREATE | XATTR_REPLACE,
            _ => 0,
        };
        if flags & !known != 0 {
            return Err(errno::EINVAL.into());
        }
        if number == nr::__NR_setxattrat && len > VALUE_MAX {
            return Err(errno::E2BIG.into());
        }
        Ok(())
    }

    /// Checks an attribute's name.
    async fn attribute_name(&self, name: u64) -> Result<()> {
        let name = match self.memory.read_string(name, NAME_MAX + 1).await {
            Err(crate::Error::Errno(errno::ENAMETOOLONG)) => return Err(errno::ERANGE.into()),
            name => name?,
        };
        if name.is_empty() {
            return Err(errno::ERANGE.into());
        }
        Ok(())
    }

    /// Returns an error if the file that a call is about does not exist.
    async fn attributed(&self, number: u32, file: u64) -> Result<()> {
        match number {
            nr::__NR_fgetxattr
            | nr::__NR_flistxattr
            | nr::__NR_fsetxattr
            | nr::__NR_fremovexattr => self.file(file).map(drop),
            nr::__NR_lgetxattr
            | nr::__NR_llistxattr
            | nr::__NR_lsetxattr
            | nr::__NR_lremovexattr => self.status_at(AT_FDCWD, file, NOFOLLOW).await.map(drop),
            _ => self.status_at(AT_FDCWD, file, 0).await.map(drop),
        }
    }

    /// Checks an attribute's name, and the file.
    async fn attribute(&self, number: u32, file: u64, name: u64) -> Result<()> {
        self.attribute_name(name).await?;
        self.attributed(number, file).await
    }

    async fn set_attribute(
        &self,
        number: u32,
        [file, name, value, len, flags, _]: Args,
    ) -> Result<u64> {
        if flags & !(XATTR_CREATE | XATTR_REPLACE) != 0 {
            return Err(errno::EINVAL.into());
        }
        if len > VALUE_MAX {
            return Err(errno::E2BIG.into());
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| errno::E2BIG)?];
        self.memory.read(value, &mut bytes).await?;
        self.attribute(number, file, name).await?;
        Err(errno::EOPNOTSUPP.into())
    }
}
