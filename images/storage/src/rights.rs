//! Rights of callers, by Linux's rules: `generic_permission`, `may_delete` and `mode_strip_sgid`
//! (`fs/namei.c`, `fs/inode.c`), `setattr_prepare` and `notify_change` (`fs/attr.c`).
//!
//! Access control lists are not looked at: a file that has one is judged by its mode.

use ext4::{Attributes, NewNode, Stat, Time};
use messages::Errno;
use messages::storage::{AttributeFlags, Caller, Privileges};

use crate::convert::{self, DIRECTORY, is};

pub(crate) const READ: u16 = 4;
pub(crate) const WRITE: u16 = 2;
pub(crate) const EXECUTE: u16 = 1;

const SET_USER: u16 = 0o4000;
const SET_GROUP: u16 = 0o2000;
const STICKY: u16 = 0o1000;
const GROUP_EXECUTE: u16 = 0o010;
const ANY_EXECUTE: u16 = 0o111;
const PERMISSIONS: u16 = 0o7777;

fn can(by: &Caller<'_>, privilege: Privileges) -> bool {
    by.privileges.contains(privilege)
}

fn owns(by: &Caller<'_>, stat: &Stat) -> bool {
    by.user == stat.uid || can(by, Privileges::FOWNER)
}

/// Returns whether a caller may give rights in a group's name.
fn own_group(by: &Caller<'_>, group: u32) -> bool {
    by.in_group(group) || can(by, Privileges::FSETID)
}

fn may(by: &Caller<'_>, stat: &Stat, want: u16) -> bool {
    let class = if by.user == stat.uid {
        stat.mode >> 6
    } else if by.in_group(stat.gid) {
        stat.mode >> 3
    } else {
        stat.mode
    };
    if want & !class & 7 == 0 {
        return true;
    }
    let directory = is(stat, DIRECTORY);
    let reads = want == READ || directory && want & WRITE == 0;
    if reads && can(by, Privileges::DAC_READ_SEARCH) {
        return true;
    }
    let executable = directory || stat.mode & ANY_EXECUTE != 0;
    (want & EXECUTE == 0 || executable) && can(by, Privileges::DAC_OVERRIDE)
}

/// Returns EACCES unless a caller may do `want`, of [`READ`], [`WRITE`] and [`EXECUTE`].
pub(crate) fn check(by: &Caller<'_>, stat: &Stat, want: u16) -> Result<(), Errno> {
    if may(by, stat, want) {
        Ok(())
    } else {
        Err(Errno::EACCES)
    }
}

/// Checks that a caller may make a name in a directory.
pub(crate) fn check_create(by: &Caller<'_>, dir: &Stat) -> Result<(), Errno> {
    check(by, dir, WRITE | EXECUTE)
}

/// Checks that a caller may take a file's name out of a directory.
pub(crate) fn check_delete(by: &Caller<'_>, dir: &Stat, file: &Stat) -> Result<(), Errno> {
    check(by, dir, WRITE | EXECUTE)?;
    if dir.mode & STICKY != 0 && by.user != dir.uid && !owns(by, file) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// Checks that a caller may change attributes of a directory whose names only owners take away.
pub(crate) fn check_sticky(by: &Caller<'_>, dir: &Stat) -> Result<(), Errno> {
    if dir.mode & STICKY != 0 && !owns(by, dir) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// Returns what a file that a caller makes in a directory begins with.
pub(crate) fn new_node(
    by: &Caller<'_>,
    dir: &Stat,
    mode: u32,
    directory: bool,
    now: Time,
) -> NewNode {
    // The low twelve bits are permissions.
    let mut mode = u16::try_from(mode & u32::from(PERMISSIONS)).unwrap_or(0);
    let inherits = dir.mode & SET_GROUP != 0;
    if directory {
        // As `vfs_mkdir` does.
        mode &= !(SET_USER | SET_GROUP);
    }
    if inherits && directory {
        mode |= SET_GROUP;
    }
    let both = SET_GROUP | GROUP_EXECUTE;
    if inherits && !directory && mode & both == both && !own_group(by, dir.gid) {
        mode &= !SET_GROUP;
    }
    NewNode {
        mode,
        uid: by.user,
        gid: if inherits { dir.gid } else { by.group },
        now,
    }
}

/// Returns the permissions that are left when somebody else's doing takes set-user-id and
/// set-group-id off a file; `None` if they stay as they are. Set-group-id of a file that its group
/// may not execute stays if that is the doer's `own` group.
pub(crate) fn without_set_ids(stat: &Stat, own: bool) -> Option<u16> {
    if is(stat, DIRECTORY) {
        return None;
    }
    let mut mode = stat.mode & PERMISSIONS & !SET_USER;
    if stat.mode & GROUP_EXECUTE != 0 || !own {
        mode &= !SET_GROUP;
    }
    (mode != stat.mode & PERMISSIONS).then_some(mode)
}

/// Returns the change of attributes that a request comes to.
///
/// # Errors
///
/// EPERM where the caller may not make it; EACCES for times that only who may write may set.
pub(crate) fn change(
    by: &Caller<'_>,
    stat: &Stat,
    set: &messages::storage::Attributes,
) -> Result<Attributes, Errno> {
    let has = |flag| set.which.contains(flag);
    let (uid, gid) = (
        has(AttributeFlags::UID).then_some(set.uid),
        has(AttributeFlags::GID).then_some(set.gid),
    );
    check_owners(by, stat, uid, gid)?;
    let chowns = uid.is_some() || gid.is_some();
    let permissions = if has(AttributeFlags::MODE) {
        Some(new_mode(by, stat, set.mode, gid)?)
    } else if chowns {
        without_set_ids(stat, own_group(by, stat.gid))
    } else {
        None
    };
    if has(AttributeFlags::PRESENT) {
        if !owns(by, stat) {
            check(by, stat, WRITE)?;
        }
    } else if set
        .which
        .intersects(AttributeFlags::ACCESSED | AttributeFlags::MODIFIED)
        && !owns(by, stat)
    {
        return Err(Errno::EPERM);
    }
    Ok(Attributes {
        permissions,
        uid,
        gid,
        accessed: has(AttributeFlags::ACCESSED).then(|| convert::file_time(set.accessed)),
        modified: has(AttributeFlags::MODIFIED).then(|| convert::file_time(set.modified)),
    })
}

fn check_owners(
    by: &Caller<'_>,
    stat: &Stat,
    uid: Option<u32>,
    gid: Option<u32>,
) -> Result<(), Errno> {
    let is_owner = by.user == stat.uid;
    let user = uid.is_none_or(|uid| is_owner && uid == stat.uid);
    let group = gid.is_none_or(|gid| is_owner && (gid == stat.gid || by.in_group(gid)));
    if user && group || can(by, Privileges::CHOWN) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// Returns the permissions that a chmod gives: set-group-id only with a group of the caller's own.
fn new_mode(by: &Caller<'_>, stat: &Stat, mode: u32, gid: Option<u32>) -> Result<u16, Errno> {
    if !owns(by, stat) {
        return Err(Errno::EPERM);
    }
    let mode = u16::try_from(mode & u32::from(PERMISSIONS)).unwrap_or(0);
    let own = own_group(by, gid.unwrap_or(stat.gid));
    Ok(if own { mode } else { mode & !SET_GROUP })
}
