//! Identity: user and group numbers, supplementary groups, capabilities (Linux `kernel/sys.c`,
//! `security/commoncap.c`; the rules are those of setuid(2), setresuid(2), capabilities(7)).

use alloc::sync::Arc;
use alloc::vec::Vec;

use messages::storage::{Caller, Groups, MAX_GROUPS as MAX_TOLD, Privileges};

use crate::error::{Result, errno};

/// Supplementary groups at most (`NGROUPS_MAX`).
pub(crate) const MAX_GROUPS: usize = 65_536;
/// The highest capability that is known (`CAP_CHECKPOINT_RESTORE`).
pub(crate) const LAST_CAPABILITY: u32 = 40;
/// All capabilities.
const ALL: u64 = (1 << (LAST_CAPABILITY + 1)) - 1;
/// Leaves a number as it is, in setresuid(2) and the like.
const KEEP: u32 = u32::MAX;

pub(crate) const CAP_CHOWN: u32 = 0;
pub(crate) const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
pub(crate) const CAP_FOWNER: u32 = 3;
const CAP_FSETID: u32 = 4;
pub(crate) const CAP_KILL: u32 = 5;
pub(crate) const CAP_SETGID: u32 = 6;
pub(crate) const CAP_SETUID: u32 = 7;
pub(crate) const CAP_SETPCAP: u32 = 8;
pub(crate) const CAP_SYS_CHROOT: u32 = 18;
pub(crate) const CAP_SYS_PTRACE: u32 = 19;
pub(crate) const CAP_SYS_ADMIN: u32 = 21;
pub(crate) const CAP_SYS_NICE: u32 = 23;
pub(crate) const CAP_SYS_RESOURCE: u32 = 24;
pub(crate) const CAP_MKNOD: u32 = 27;
/// Capabilities that go and come with the file system's user 0 (Linux `include/linux/capability.h`,
/// `CAP_FS_MASK`): these, `CAP_LINUX_IMMUTABLE` and `CAP_MAC_OVERRIDE`.
const OF_FILES: u64 = 1 << CAP_CHOWN
    | 1 << CAP_DAC_OVERRIDE
    | 1 << CAP_DAC_READ_SEARCH
    | 1 << CAP_FOWNER
    | 1 << CAP_FSETID
    | 1 << CAP_MKNOD
    | 1 << 9
    | 1 << 32;

/// Rights of access(2).
pub(crate) const READ: u32 = 4;
pub(crate) const WRITE: u32 = 2;
pub(crate) const EXECUTE: u32 = 1;

/// Real, effective, saved and file system numbers, of users or groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ids {
    pub(crate) real: u32,
    pub(crate) effective: u32,
    pub(crate) saved: u32,
    pub(crate) fs: u32,
}

impl Ids {
    /// Returns whether a number is one of a process's own: real, effective or saved.
    pub(crate) fn names(self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }

    /// Returns four times the same number.
    pub(crate) const fn all(id: u32) -> Self {
        Self {
            real: id,
            effective: id,
            saved: id,
            fs: id,
        }
    }

    fn has(&self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }

    fn set(&self, id: u32, privileged: bool) -> Result<Self> {
        if privileged {
            Ok(Self::all(id))
        } else if id == self.real || id == self.saved {
            Ok(Self {
                effective: id,
                fs: id,
                ..*self
            })
        } else {
            Err(errno::EPERM.into())
        }
    }

    fn set_two(&self, real: u32, effective: u32, privileged: bool) -> Result<Self> {
        let mut new = *self;
        if real != KEEP {
            if !privileged && real != self.real && real != self.effective {
                return Err(errno::EPERM.into());
            }
            new.real = real;
        }
        if effective != KEEP {
            if !privileged && !self.has(effective) {
                return Err(errno::EPERM.into());
            }
            new.effective = effective;
        }
        if real != KEEP || effective != KEEP && effective != self.real {
            new.saved = new.effective;
        }
        new.fs = new.effective;
        Ok(new)
    }

    fn set_three(&self, wanted: [u32; 3], privileged: bool) -> Result<Self> {
        if !privileged && wanted.iter().any(|&id| id != KEEP && !self.has(id)) {
            return Err(errno::EPERM.into());
        }
        let pick = |wanted: u32, had: u32| if wanted == KEEP { had } else { wanted };
        let effective = pick(wanted[1], self.effective);
        Ok(Self {
            real: pick(wanted[0], self.real),
            effective,
            saved: pick(wanted[2], self.saved),
            fs: effective,
        })
    }
}

/// Capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Capabilities {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) bounding: u64,
    pub(crate) ambient: u64,
}

/// Capabilities as S is told them.
const TOLD: [(u32, Privileges); 7] = [
    (CAP_CHOWN, Privileges::CHOWN),
    (CAP_DAC_OVERRIDE, Privileges::DAC_OVERRIDE),
    (CAP_DAC_READ_SEARCH, Privileges::DAC_READ_SEARCH),
    (CAP_FOWNER, Privileges::FOWNER),
    (CAP_FSETID, Privileges::FSETID),
    (CAP_MKNOD, Privileges::MKNOD),
    (CAP_SYS_ADMIN, Privileges::SYS_ADMIN),
];

/// An identity as S is told it.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    user: u32,
    group: u32,
    privileges: Privileges,
    groups: Vec<[u8; 4]>,
}

impl Asker {
    /// Returns what a request says.
    pub(crate) fn caller(&self) -> Caller<'_> {
        Caller {
            user: self.user,
            group: self.group,
            privileges: self.privileges,
            groups: Groups::new(&self.groups).expect("no more than S is told"),
        }
    }
}

/// A thread's identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Creds {
    pub(crate) user: Ids,
    pub(crate) group: Ids,
    pub(crate) groups: Arc<[u32]>,
    pub(crate) capabilities: Capabilities,
    /// `PR_SET_KEEPCAPS`: giving up user 0 keeps the permitted capabilities.
    pub(crate) keep_capabilities: bool,
}

impl Creds {
    /// Returns the identity of the first process.
    pub(crate) fn new(uid: u32, gid: u32) -> Self {
        let held = if uid == 0 { ALL } else { 0 };
        Self {
            user: Ids::all(uid),
            group: Ids::all(gid),
            groups: Arc::new([]),
            capabilities: Capabilities {
                effective: held,
                permitted: held,
                inheritable: 0,
                bounding: ALL,
                ambient: 0,
            },
            keep_capabilities: false,
        }
    }

    /// Returns whether a capability is effective.
    pub(crate) fn can(&self, capability: u32) -> bool {
        self.capabilities.effective >> capability & 1 != 0
    }

    /// Changes the user's numbers, and the capabilities with them.
    fn change_user(&mut self, new: Ids) {
        let old = core::mem::replace(&mut self.user, new);
        let had_root = old.has(0);
        if had_root && !new.has(0) && !self.keep_capabilities {
            self.capabilities.permitted = 0;
            self.capabilities.effective = 0;
            self.capabilities.ambient = 0;
        }
        if old.effective == 0 && new.effective != 0 {
            self.capabilities.effective = 0;
        } else if old.effective != 0 && new.effective == 0 {
            self.capabilities.effective = self.capabilities.permitted;
        }
    }

    pub(crate) fn set_uid(&mut self, id: u32) -> Result<()> {
        valid(id)?;
        let new = self.user.set(id, self.can(CAP_SETUID))?;
        self.change_user(new);
        Ok(())
    }

    pub(crate) fn set_gid(&mut self, id: u32) -> Result<()> {
        valid(id)?;
        self.group = self.group.set(id, self.can(CAP_SETGID))?;
        Ok(())
    }

    pub(crate) fn set_reuid(&mut self, real: u32, effective: u32) -> Result<()> {
        let new = self.user.set_two(real, effective, self.can(CAP_SETUID))?;
        self.change_user(new);
        Ok(())
    }

    pub(crate) fn set_regid(&mut self, real: u32, effective: u32) -> Result<()> {
        self.group = self.group.set_two(real, effective, self.can(CAP_SETGID))?;
        Ok(())
    }

    pub(crate) fn set_resuid(&mut self, wanted: [u32; 3]) -> Result<()> {
        let new = self.user.set_three(wanted, self.can(CAP_SETUID))?;
        self.change_user(new);
        Ok(())
    }

    pub(crate) fn set_resgid(&mut self, wanted: [u32; 3]) -> Result<()> {
        self.group = self.group.set_three(wanted, self.can(CAP_SETGID))?;
        Ok(())
    }

    /// Changes the file system's user, if that is allowed; returns the number before.
    pub(crate) fn set_fsuid(&mut self, id: u32) -> u32 {
        let before = self.user.fs;
        if self.can(CAP_SETUID) || self.user.has(id) || id == before {
            self.user.fs = id;
            let held = &mut self.capabilities;
            if before == 0 && id != 0 {
                held.effective &= !OF_FILES;
            } else if before != 0 && id == 0 {
                held.effective |= held.permitted & OF_FILES;
            }
        }
        before
    }

    /// Changes the file system's group, if that is allowed; returns the number before.
    pub(crate) fn set_fsgid(&mut self, id: u32) -> u32 {
        let before = self.group.fs;
        if self.can(CAP_SETGID) || self.group.has(id) || id == before {
            self.group.fs = id;
        }
        before
    }

    /// Replaces the supplementary groups.
    pub(crate) fn set_groups(&mut self, groups: Arc<[u32]>) -> Result<()> {
        if !self.can(CAP_SETGID) {
            return Err(errno::EPERM.into());
        }
        self.groups = groups;
        Ok(())
    }

    /// Takes the identity of a program that is executed: of its file's owner if it is set-user-id
    /// or set-group-id. Returns whether it gained rights (`AT_SECURE`).
    pub(crate) fn execute(&mut self, mode: u32, owner: u32, group: u32) -> bool {
        const SETUID: u32 = 0o4000;
        const SETGID: u32 = 0o2010;
        if mode & SETUID != 0 {
            self.user.effective = owner;
        }
        if mode & SETGID == SETGID {
            self.group.effective = group;
        }
        (self.user.saved, self.user.fs) = (self.user.effective, self.user.effective);
        (self.group.saved, self.group.fs) = (self.group.effective, self.group.effective);
        let held = &mut self.capabilities;
        if self.user.real == 0 || self.user.effective == 0 {
            held.permitted = held.bounding | held.inheritable;
            held.effective = if self.user.effective == 0 {
                held.permitted
            } else {
                0
            };
        } else {
            (held.permitted, held.effective) = (held.ambient, held.ambient);
        }
        self.keep_capabilities = false;
        self.user.real != self.user.effective || self.group.real != self.group.effective
    }

    /// Returns the identity as S is told it.
    pub(crate) fn asker(&self) -> Asker {
        let told = TOLD.iter().filter(|(capability, _)| self.can(*capability));
        Asker {
            user: self.user.fs,
            group: self.group.fs,
            privileges: told.map(|(_, privilege)| *privilege).collect(),
            groups: self
                .groups
                .iter()
                .take(MAX_TOLD)
                .map(|group| group.to_le_bytes())
                .collect(),
        }
    }

    fn in_group(&self, group: u32) -> bool {
        self.group.fs == group || self.groups.contains(&group)
    }

    /// Returns whether the file system's user may do `want`, of [`READ`], [`WRITE`] and
    /// [`EXECUTE`].
    pub(crate) fn may(&self, mode: u32, owner: u32, group: u32, want: u32) -> bool {
        const ANY_EXECUTE: u32 = 0o111;
        const FOLDER: u32 = 0o040_000;
        const TYPE_MASK: u32 = 0o170_000;
        let class = if self.user.fs == owner {
            mode >> 6
        } else if self.in_group(group) {
            mode >> 3
        } else {
            mode
        };
        if want & !class & 7 == 0 {
            return true;
        }
        let executable = mode & ANY_EXECUTE != 0 || mode & TYPE_MASK == FOLDER;
        self.can(CAP_DAC_OVERRIDE) && (want & EXECUTE == 0 || executable)
    }

    /// Returns the identity that access(2) asks for: the real numbers.
    pub(crate) fn as_real(&self) -> Self {
        let mut real = self.clone();
        real.user.fs = self.user.real;
        real.group.fs = self.group.real;
        let held = &mut real.capabilities;
        held.effective = if self.user.real == 0 {
            held.permitted
        } else {
            0
        };
        real
    }

    /// Returns whether a signal may be sent to a thread of another identity.
    pub(crate) fn may_signal(&self, other: &Self) -> bool {
        let own = [self.user.real, self.user.effective];
        self.can(CAP_KILL) || own.contains(&other.user.real) || own.contains(&other.user.saved)
    }

    /// Returns whether what `/proc` hides of another identity's processes may be seen (Linux's
    /// `PTRACE_MODE_READ_FSCREDS`).
    pub(crate) fn may_inspect(&self, other: &Self) -> bool {
        let same = |own: u32, ids: &Ids| [ids.real, ids.effective, ids.saved] == [own; 3];
        let own = same(self.user.fs, &other.user) && same(self.group.fs, &other.group);
        own || self.can(CAP_SYS_PTRACE)
    }

    /// Replaces capabilities (capset(2)).
    pub(crate) fn set_capabilities(
        &mut self,
        effective: u64,
        permitted: u64,
        inheritable: u64,
    ) -> Result<()> {
        let had = self.capabilities;
        let may_inherit = if self.can(CAP_SETPCAP) {
            had.bounding | had.inheritable | had.permitted
        } else {
            had.inheritable | had.permitted
        };
        let gains =
            permitted & !had.permitted | effective & !permitted | inheritable & !may_inherit;
        if gains != 0 {
            return Err(errno::EPERM.into());
        }
        self.capabilities = Capabilities {
            effective,
            permitted,
            inheritable,
            ambient: had.ambient & permitted & inheritable,
            ..had
        };
        Ok(())
    }
}

fn valid(id: u32) -> Result<()> {
    if id == KEEP {
        Err(errno::EINVAL.into())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(creds: &Creds) -> [u32; 3] {
        [creds.user.real, creds.user.effective, creds.user.saved]
    }

    #[test]
    fn root_becomes_a_user_for_good_by_setuid() {
        let mut creds = Creds::new(0, 0);
        creds.set_uid(1000).unwrap();
        assert_eq!(ids(&creds), [1000; 3]);
        assert_eq!(creds.capabilities.permitted, 0);
        assert_eq!(creds.set_uid(0), Err(errno::EPERM.into()));
        assert_eq!(creds.set_uid(u32::MAX), Err(errno::EINVAL.into()));
        assert_eq!(creds.set_groups(Arc::new([1])), Err(errno::EPERM.into()));
    }

    #[test]
    fn a_saved_root_comes_back_by_seteuid() {
        let mut creds = Creds::new(0, 0);
        creds.set_resuid([KEEP, 1000, KEEP]).unwrap();
        assert_eq!((ids(&creds), creds.can(CAP_KILL)), ([0, 1000, 0], false));
        creds.set_resuid([KEEP, 0, KEEP]).unwrap();
        assert!(creds.can(CAP_KILL));
        creds.set_reuid(1000, 1000).unwrap();
        assert_eq!(ids(&creds), [1000; 3], "setreuid sets the saved number too");
        assert_eq!(creds.set_reuid(KEEP, 0), Err(errno::EPERM.into()));
    }

    #[test]
    fn rights_are_the_first_class_s_that_fits() {
        let mut creds = Creds::new(0, 0);
        assert!(creds.may(0o100_000, 5, 5, READ | WRITE));
        assert!(
            !creds.may(0o100_644, 5, 5, EXECUTE),
            "root executes what anyone may"
        );
        assert!(creds.may(0o100_001, 5, 5, EXECUTE));
        creds.set_groups(Arc::new([7])).unwrap();
        creds.set_uid(1000).unwrap();
        assert!(
            !creds.may(0o100_077, 1000, 7, READ),
            "the owner's bits, not the group's"
        );
        assert!(creds.may(0o100_640, 5, 7, READ) && !creds.may(0o100_640, 5, 7, WRITE));
        assert!(creds.may(0o100_604, 5, 8, READ) && !creds.may(0o100_640, 5, 8, READ));
    }

    #[test]
    fn a_set_user_id_program_gets_its_owner_s_rights() {
        let mut creds = Creds::new(1000, 1000);
        assert!(creds.execute(0o104_755, 0, 0));
        assert_eq!(ids(&creds), [1000, 0, 0]);
        assert!(creds.can(CAP_CHOWN));
        assert_eq!(creds.as_real().user.fs, 1000);
        creds.set_uid(1000).unwrap();
        let again = creds.execute(0o100_755, 0, 0);
        assert!(!again && !creds.can(CAP_CHOWN));
    }

    #[test]
    fn signals_go_to_one_s_own() {
        let (root, user, other) = (Creds::new(0, 0), Creds::new(1, 1), Creds::new(2, 2));
        assert!(root.may_signal(&user) && user.may_signal(&user));
        assert!(!user.may_signal(&other) && !user.may_signal(&root));
    }

    #[test]
    fn processes_of_one_s_own_may_be_inspected() {
        let (root, user, other) = (Creds::new(0, 0), Creds::new(1, 1), Creds::new(1, 2));
        assert!(root.may_inspect(&user) && user.may_inspect(&user));
        assert!(!user.may_inspect(&other) && !user.may_inspect(&root));
        let mut raised = Creds::new(1, 1);
        raised.execute(0o104_755, 0, 0);
        assert!(!user.may_inspect(&raised), "its rights are not the user's");
    }

    #[test]
    fn capabilities_only_shrink() {
        let mut creds = Creds::new(0, 0);
        creds.set_capabilities(1, 3, 0).unwrap();
        assert!(creds.can(0) && !creds.can(1));
        creds.set_capabilities(2, 3, 0).unwrap();
        assert_eq!(creds.set_capabilities(4, 7, 0), Err(errno::EPERM.into()));
        assert_eq!(creds.set_capabilities(4, 3, 0), Err(errno::EPERM.into()));
    }

    #[test]
    fn rights_to_files_go_and_come_with_the_file_system_s_user() {
        let mut creds = Creds::new(0, 0);
        assert_eq!(creds.set_fsuid(1000), 0);
        assert!(!creds.can(CAP_DAC_OVERRIDE) && creds.can(CAP_SETUID));
        assert!(!creds.may(0o600, 0, 0, 4));
        assert_eq!(creds.set_fsuid(0), 1000);
        assert!(creds.can(CAP_DAC_OVERRIDE) && creds.may(0o600, 0, 0, 4));
    }
}
