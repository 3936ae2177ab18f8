//! Requests about extended attributes, and who may see and set which (Linux `xattr_permission` in
//! `fs/xattr.c`, `cap_inode_setxattr`).
//!
//! Access control lists are refused, as by an ext4 that is mounted with `noacl`.

use alloc::vec;
use alloc::vec::Vec;

use ext4::{Disk, Namespace, SetMode, Stat};
use messages::storage::{
    Caller, ListXattrRequest, Privileges, SetXattrRequest, XattrFlags, XattrName, XattrRequest,
};
use messages::{Errno, MAX_MESSAGE};

use crate::convert::{DIRECTORY, REGULAR, is};
use crate::rights::{self, READ, WRITE};
use crate::{Bulk, Error, PeerKey, Server};

const PREFIXES: [(&[u8], Namespace); 3] = [
    (b"user.", Namespace::USER),
    (b"trusted.", Namespace::TRUSTED),
    (b"security.", Namespace::SECURITY),
];
/// The longest value (Linux `XATTR_SIZE_MAX`).
const VALUE_MAX: usize = 65_536;
/// The longest reply besides its errno.
const REPLY_MAX: usize = MAX_MESSAGE - 4;

fn split(name: XattrName<'_>) -> Result<(Namespace, &[u8]), Errno> {
    let prefixed = |(prefix, namespace): &(&[u8], Namespace)| {
        let rest = name.as_bytes().strip_prefix(*prefix)?;
        Some((*namespace, rest))
    };
    match PREFIXES.iter().find_map(prefixed) {
        Some((_, [])) => Err(Errno::EINVAL),
        Some(split) => Ok(split),
        None => Err(Errno::EOPNOTSUPP),
    }
}

/// Checks that a caller may read (or with `write` change) an attribute of a file.
fn check(by: &Caller<'_>, stat: &Stat, namespace: Namespace, write: bool) -> Result<(), Errno> {
    let hidden = if write { Errno::EPERM } else { Errno::ENODATA };
    let admin = by.privileges.contains(Privileges::SYS_ADMIN);
    match namespace {
        Namespace::TRUSTED if !admin => Err(hidden),
        Namespace::SECURITY if write && !admin => Err(Errno::EPERM),
        Namespace::USER => {
            if !is(stat, REGULAR) && !is(stat, DIRECTORY) {
                return Err(hidden);
            }
            if write && is(stat, DIRECTORY) {
                rights::check_sticky(by, stat)?;
            }
            rights::check(by, stat, if write { WRITE } else { READ })
        }
        _ => Ok(()),
    }
}

impl<D: Disk> Server<D> {
    /// Checks a request; returns the inode and the attribute's name in parts.
    async fn attribute<'a>(
        &self,
        from: PeerKey,
        ask: &XattrRequest<'a>,
        write: bool,
    ) -> Result<(u32, (Namespace, &'a [u8])), Error> {
        let inode = self.file(from, ask.file)?.held.inode();
        if write {
            self.check_writable()?;
        }
        let name = split(ask.name)?;
        check(&ask.caller, &self.files.stat(inode).await?, name.0, write)?;
        Ok((inode, name))
    }

    pub(crate) async fn get_xattr(
        &self,
        from: PeerKey,
        ask: &XattrRequest<'_>,
    ) -> Result<Vec<u8>, Error> {
        let (inode, (namespace, name)) = self.attribute(from, ask, false).await?;
        let all = self.files.xattrs(inode).await?;
        let found = all
            .into_iter()
            .find(|xattr| xattr.namespace == namespace && xattr.name == name);
        let value = found.ok_or(Errno::ENODATA)?.value;
        if value.len() > REPLY_MAX {
            return Err(Errno::E2BIG.into());
        }
        Ok(value)
    }

    pub(crate) async fn list_xattrs(
        &self,
        from: PeerKey,
        ask: &ListXattrRequest<'_>,
    ) -> Result<Vec<u8>, Error> {
        let inode = self.file(from, ask.file)?.held.inode();
        let admin = ask.caller.privileges.contains(Privileges::SYS_ADMIN);
        let mut names = Vec::new();
        for xattr in self.files.xattrs(inode).await? {
            let prefix = PREFIXES.iter().find(|(_, of)| *of == xattr.namespace);
            let Some((prefix, of)) = prefix else { continue };
            if *of == Namespace::TRUSTED && !admin {
                continue;
            }
            names.extend_from_slice(prefix);
            names.extend_from_slice(&xattr.name);
            names.push(0);
        }
        if names.len() > REPLY_MAX {
            return Err(Errno::E2BIG.into());
        }
        Ok(names)
    }

    pub(crate) async fn set_xattr(
        &self,
        from: PeerKey,
        ask: &SetXattrRequest<'_>,
        bulk: &mut dyn Bulk,
    ) -> Result<(), Error> {
        if bulk.len() > VALUE_MAX {
            return Err(Errno::E2BIG.into());
        }
        let mut value = vec![0; bulk.len()];
        if bulk.read(0, &mut value) < value.len() {
            return Err(Errno::EIO.into());
        }
        let (caller, file, name) = (ask.caller, ask.file, ask.name);
        let named = XattrRequest { caller, file, name };
        let (inode, name) = self.attribute(from, &named, true).await?;
        let _access = self.access(from, &[inode]).await;
        let both = ask.flags == XattrFlags::CREATE | XattrFlags::REPLACE;
        let mode = if both && !self.has_xattr(inode, name).await? {
            SetMode::Replace
        } else if ask.flags.contains(XattrFlags::CREATE) {
            SetMode::Create
        } else if ask.flags.contains(XattrFlags::REPLACE) {
            SetMode::Replace
        } else {
            SetMode::Either
        };
        let set = self.files.set_xattr(inode, name, &value, mode, self.now());
        Ok(set.await?)
    }

    async fn has_xattr(&self, inode: u32, name: (Namespace, &[u8])) -> Result<bool, Error> {
        let all = self.files.xattrs(inode).await?;
        Ok(all
            .iter()
            .any(|xattr| (xattr.namespace, xattr.name.as_slice()) == name))
    }

    pub(crate) async fn remove_xattr(
        &self,
        from: PeerKey,
        ask: &XattrRequest<'_>,
    ) -> Result<(), Error> {
        let (inode, name) = self.attribute(from, ask, true).await?;
        let _access = self.access(from, &[inode]).await;
        Ok(self.files.remove_xattr(inode, name, self.now()).await?)
    }
}
