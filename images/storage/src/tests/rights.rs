//! Rights of callers: what S refuses to whom. The values are those that Linux 6.18 gives on ext4
//! (the program `rights` of the testbed compares many more in a cluster).

use super::change::{ask, server};
use super::*;

const OWNER: u32 = 1000;
const GROUP: u32 = 100;

fn user(uid: u32, gid: u32) -> Caller<'static> {
    Caller {
        user: uid,
        group: gid,
        privileges: Privileges::empty(),
        ..Caller::ROOT
    }
}

fn owner() -> Caller<'static> {
    user(OWNER, GROUP)
}

fn other() -> Caller<'static> {
    user(1003, 300)
}

/// Makes requests in a caller's name.
struct By<'a>(&'a Server<Ram>, Caller<'a>);

impl By<'_> {
    fn open(&self, name: &str, flags: OpenFlags, mode: u32) -> Result<Opened, Errno> {
        let request = OpenRequest {
            caller: self.1,
            path: path(name),
            flags,
            mode,
        };
        ask!(self.0, Open, request, b"")
    }
    fn stat(&self, name: &str) -> Result<Stat, Errno> {
        let request = StatRequest {
            caller: self.1,
            path: path(name),
            follow: false,
        };
        ask!(self.0, StatPath, request, b"")
    }
    fn make(&self, name: &str, mode: u32) -> Result<(), Errno> {
        let request = MakeRequest {
            caller: self.1,
            path: path(name),
            mode,
            device: 0x103,
        };
        ask!(self.0, Make, request, b"")
    }
    fn symlink(&self, name: &str) -> Result<(), Errno> {
        let (caller, path) = (self.1, path(name));
        ask!(self.0, Symlink, PathRequest { caller, path }, b"hello")
    }
    fn link(&self, old: &str, new: &str) -> Result<(), Errno> {
        let request = LinkRequest {
            caller: self.1,
            path: path(old),
            follow: false,
        };
        ask!(self.0, Link, request, new.as_bytes())
    }
    fn remove(&self, name: &str, directory: bool) -> Result<(), Errno> {
        let request = RemoveRequest {
            caller: self.1,
            path: path(name),
            directory,
        };
        ask!(self.0, Remove, request, b"").map(drop)
    }
    fn rename(&self, old: &str, new: &str, flags: RenameFlags) -> Result<(), Errno> {
        let request = RenameRequest {
            caller: self.1,
            path: path(old),
            flags,
        };
        ask!(self.0, Rename, request, new.as_bytes()).map(drop)
    }
    fn set(&self, name: &str, set: Attributes) -> Result<(), Errno> {
        let request = SetPathRequest {
            caller: self.1,
            path: path(name),
            follow: true,
            set,
        };
        ask!(self.0, SetPath, request, b"")
    }
    fn chmod(&self, name: &str, mode: u32) -> Result<(), Errno> {
        let which = AttributeFlags::MODE;
        self.set(
            name,
            Attributes {
                mode,
                ..nothing(which)
            },
        )
    }
    fn chown(&self, name: &str, uid: u32, gid: u32) -> Result<(), Errno> {
        let mut which = AttributeFlags::empty();
        which.set(AttributeFlags::UID, uid != u32::MAX);
        which.set(AttributeFlags::GID, gid != u32::MAX);
        self.set(
            name,
            Attributes {
                uid,
                gid,
                ..nothing(which)
            },
        )
    }
    /// A directory of a mode, which belongs to the first user.
    fn directory(&self, name: &str, mode: u32) {
        self.make(name, 0o040_700).unwrap();
        self.chown(name, OWNER, GROUP).unwrap();
        self.chmod(name, mode).unwrap();
    }
    /// A file of a mode and an owner.
    fn file(&self, name: &str, mode: u32, uid: u32, gid: u32) {
        self.make(name, 0o100_600).unwrap();
        self.chown(name, uid, gid).unwrap();
        self.chmod(name, mode).unwrap();
    }
    fn mode(&self, name: &str) -> u32 {
        self.stat(name).unwrap().mode & 0o7777
    }
}

fn nothing(which: AttributeFlags) -> Attributes {
    let never = FileTime {
        seconds: 0,
        nanos: 0,
    };
    Attributes {
        which,
        mode: 0,
        uid: 0,
        gid: 0,
        accessed: never,
        modified: never,
    }
}

const NO: Result<(), Errno> = Err(Errno::EACCES);
const NEVER: Result<(), Errno> = Err(Errno::EPERM);

#[test]
fn every_directory_on_the_way_must_be_searched() {
    let (server, disk) = server("search");
    let root = By(&server, Caller::ROOT);
    root.directory("/top", 0o711);
    root.directory("/top/mid", 0o700);
    root.directory("/top/mid/low", 0o777);
    root.file("/top/mid/low/f", 0o666, OWNER, GROUP);
    let name = "/top/mid/low/f";
    let (owner, other) = (By(&server, owner()), By(&server, other()));
    assert_eq!(owner.stat(name).map(drop), Ok(()));
    for asked in [
        name,
        "/top/mid/.",
        "/top/mid/..",
        "/top/mid/missing",
        "/top/mid/low/../low/f",
    ] {
        assert_eq!(other.stat(asked).map(drop), NO, "{asked}");
    }
    assert!(other.stat("/top/mid").is_ok(), "its name may be found");
    assert_eq!(other.open(name, OpenFlags::empty(), 0).map(drop), NO);
    assert_eq!(other.set(name, nothing(AttributeFlags::PRESENT)), NO);
    // A link does not lead around.
    root.symlink("/top/here").unwrap();
    root.remove("/top/here", false).unwrap();
    let (caller, link) = (Caller::ROOT, path("/top/way"));
    ask!(
        &server,
        Symlink,
        PathRequest { caller, path: link },
        b"/top/mid/low"
    )
    .unwrap();
    assert_eq!(other.open("/top/way/f", OpenFlags::READ, 0).map(drop), NO);
    // What may be searched and not read is not listed.
    let list = OpenFlags::READ | OpenFlags::DIRECTORY;
    assert_eq!(other.open("/top", list, 0).map(drop), NO);
    assert!(owner.open("/top", list, 0).is_ok());
    let searches = Caller {
        privileges: Privileges::DAC_READ_SEARCH,
        ..other.1
    };
    assert!(By(&server, searches).open("/top/mid", list, 0).is_ok());
    assert_eq!(By(&server, searches).make("/top/mid/x", 0o100_644), NO);
    change::finish(server, &disk);
}

#[test]
fn files_open_by_the_first_class_that_fits() {
    let (server, disk) = server("classes");
    let root = By(&server, Caller::ROOT);
    root.file("/f", 0o642, OWNER, GROUP);
    root.file("/none", 0o077, OWNER, GROUP);
    root.file("/run", 0o711, OWNER, GROUP);
    let groups = [5_u32, GROUP].map(u32::to_le_bytes);
    let also = Caller {
        groups: Groups::new(&groups).unwrap(),
        ..user(1002, 200)
    };
    let (read, write, run) = (OpenFlags::READ, OpenFlags::WRITE, OpenFlags::EXECUTE);
    for (caller, name, flags, expected) in [
        (owner(), "/f", read | write, Ok(())),
        (user(1001, GROUP), "/f", read, Ok(())),
        (user(1001, GROUP), "/f", write, NO),
        (also, "/f", read, Ok(())),
        (also, "/f", write, NO),
        (other(), "/f", read, NO),
        (other(), "/f", write, Ok(())),
        (other(), "/f", OpenFlags::empty(), Ok(())),
        (other(), "/f", read | OpenFlags::TRUNCATE, NO),
        (owner(), "/none", read, NO),
        (Caller::ROOT, "/none", read | write, Ok(())),
        (other(), "/run", run, Ok(())),
        (other(), "/f", run, NO),
        (Caller::ROOT, "/f", run, NO),
        (Caller::ROOT, "/run", run, Ok(())),
    ] {
        let opened = By(&server, caller).open(name, flags, 0);
        assert_eq!(opened.map(drop), expected, "{caller:?} {name} {flags:?}");
    }
    // A handle does what it was opened for.
    let file = By(&server, other()).open("/f", write, 0).unwrap().file;
    assert_eq!(read_of(&server, file), Err(Errno::EBADF));
    change::finish(server, &disk);
}

fn read_of(server: &Server<Ram>, file: FileId) -> Result<Vec<u8>, Errno> {
    read(server, file, 0, 10)
}

#[test]
fn names_are_made_by_who_may_write_the_directory_and_are_his() {
    let (server, disk) = server("makes");
    let root = By(&server, Caller::ROOT);
    root.directory("/closed", 0o755);
    root.directory("/open", 0o777);
    root.directory("/shared", 0o2777);
    root.file("/closed/f", 0o666, OWNER, GROUP);
    let other = By(&server, other());
    let create = OpenFlags::CREATE | OpenFlags::WRITE;
    assert_eq!(other.open("/closed/x", create, 0o666).map(drop), NO);
    let unnamed = OpenFlags::UNNAMED | OpenFlags::WRITE;
    assert_eq!(other.open("/closed", unnamed, 0o666).map(drop), NO);
    assert!(
        other.open("/closed/f", create, 0o666).is_ok(),
        "it is there"
    );
    for made in [
        other.make("/closed/d", 0o040_777),
        other.symlink("/closed/l"),
        other.link("/closed/f", "/closed/g"),
        other.make("/closed/p", 0o010_666),
    ] {
        assert_eq!(made, NO);
    }
    assert_eq!(
        other.make("/closed/f", 0o100_666),
        Err(Errno::EEXIST),
        "before the rights"
    );
    assert_eq!(other.make("/open/null", 0o020_666), NEVER);
    // A file that is made may be written, whatever its mode.
    let made = other.open("/open/secret", create, 0).unwrap();
    assert_eq!(
        (made.stat.mode, made.stat.uid, made.stat.gid),
        (0o100_000, 1003, 300)
    );
    assert_eq!(other.open("/open/secret", OpenFlags::READ, 0).map(drop), NO);
    // The directory's group is handed down, and set-group-id to directories.
    other.make("/shared/d", 0o040_755).unwrap();
    let made = other.stat("/shared/d").unwrap();
    assert_eq!((made.mode, made.uid, made.gid), (0o042_755, 1003, GROUP));
    other.make("/open/d", 0o047_755).unwrap();
    assert_eq!(
        other.mode("/open/d"),
        0o1755,
        "only the sticky bit is the maker's"
    );
    let made = other.open("/shared/f", create, 0o2775).unwrap().stat;
    assert_eq!(
        (made.mode & 0o7777, made.gid),
        (0o775, GROUP),
        "not in the group"
    );
    change::finish(server, &disk);
}

#[test]
fn names_go_by_who_may_write_the_directory_and_sticky_ones_by_their_owner() {
    let (server, disk) = server("takes");
    let root = By(&server, Caller::ROOT);
    let (owner, other) = (By(&server, owner()), By(&server, other()));
    let replace = RenameFlags::empty();
    for (name, mode) in [("/closed", 0o755), ("/open", 0o777), ("/sticky", 0o1777)] {
        root.directory(name, mode);
        for (file, uid) in [("root", 0), ("own", 1003), ("more", 1003)] {
            root.file(&format!("{name}/{file}"), 0o666, uid, 300);
        }
        root.directory(&format!("{name}/sub"), 0o755);
    }
    assert_eq!(other.remove("/closed/own", false), NO);
    assert_eq!(other.remove("/closed/missing", false), Err(Errno::ENOENT));
    assert_eq!(other.remove("/sticky/root", false), NEVER);
    assert_eq!(other.remove("/sticky/sub", true), NEVER);
    assert_eq!(other.remove("/sticky/sub", false), NEVER, "before EISDIR");
    assert_eq!(other.rename("/sticky/root", "/open/x", replace), NEVER);
    assert_eq!(other.rename("/open/own", "/sticky/root", replace), NEVER);
    assert_eq!(
        other.rename("/sticky/own", "/sticky/root", RenameFlags::EXCHANGE),
        NEVER
    );
    assert_eq!(
        other.rename("/sticky/own", "/sticky/root", RenameFlags::NO_REPLACE),
        Err(Errno::EEXIST)
    );
    assert_eq!(other.rename("/open/own", "/closed/x", replace), NO);
    assert_eq!(other.rename("/closed/own", "/open/x", replace), NO);
    // Another's directory keeps its place: its `..` is not the caller's to write.
    assert_eq!(other.rename("/open/sub", "/other", replace), NO);
    root.make("/any", 0o040_777).unwrap();
    assert_eq!(other.rename("/open/sub", "/any/sub", replace), NO);
    assert_eq!(other.rename("/open/sub", "/open/sup", replace), Ok(()));
    assert_eq!(other.rename("/sticky/own", "/any/own", replace), Ok(()));
    assert_eq!(other.remove("/sticky/more", false), Ok(()));
    assert_eq!(other.remove("/open/root", false), Ok(()));
    // The directory's owner, and who is as good as an owner.
    assert_eq!(owner.remove("/sticky/root", false), Ok(()));
    let fowner = Caller {
        privileges: Privileges::FOWNER,
        ..other.1
    };
    assert_eq!(By(&server, fowner).remove("/sticky/sub", true), Ok(()));
    change::finish(server, &disk);
}

#[test]
fn attributes_are_their_owner_s_to_change() {
    let (server, disk) = server("owners");
    let root = By(&server, Caller::ROOT);
    let (owner, other) = (By(&server, owner()), By(&server, other()));
    root.file("/f", 0o666, OWNER, GROUP);
    assert_eq!(other.chmod("/f", 0o600), NEVER);
    assert_eq!(owner.chown("/f", 0, u32::MAX), NEVER);
    assert_eq!(owner.chown("/f", u32::MAX, 777), NEVER, "no group of his");
    assert_eq!(owner.chown("/f", OWNER, GROUP), Ok(()));
    let chowns = Caller {
        privileges: Privileges::CHOWN,
        ..other.1
    };
    assert_eq!(By(&server, chowns).chown("/f", 7, 7), Ok(()));
    root.chown("/f", OWNER, GROUP).unwrap();
    // Times: the present by who may write, others by the owner.
    let present = AttributeFlags::PRESENT | AttributeFlags::ACCESSED | AttributeFlags::MODIFIED;
    let set = AttributeFlags::ACCESSED | AttributeFlags::MODIFIED;
    assert_eq!(other.set("/f", nothing(present)), Ok(()));
    assert_eq!(other.set("/f", nothing(set)), NEVER);
    assert_eq!(owner.set("/f", nothing(set)), Ok(()));
    owner.chmod("/f", 0o600).unwrap();
    assert_eq!(other.set("/f", nothing(present)), NO);
    change::finish(server, &disk);
}

#[test]
fn set_user_id_goes_with_a_write_a_cut_or_another_owner() {
    let (server, disk) = server("set-ids");
    let root = By(&server, Caller::ROOT);
    let (owner, other) = (By(&server, owner()), By(&server, other()));
    let fresh = |name: &str| root.file(name, 0o6777, OWNER, GROUP);
    for name in ["/fa", "/fb", "/fc", "/fd"] {
        fresh(name);
    }
    let file = other.open("/fa", OpenFlags::WRITE, 0).unwrap().file;
    assert_eq!(root.mode("/fa"), 0o6777, "nothing was written yet");
    change::write(&server, file, 0, b"x").unwrap();
    assert_eq!(root.mode("/fa"), 0o777);
    other
        .open("/fb", OpenFlags::TRUNCATE | OpenFlags::WRITE, 0)
        .unwrap();
    assert_eq!(root.mode("/fb"), 0o777);
    // By root it stays, but for a change of the owner.
    let file = root.open("/fc", OpenFlags::WRITE, 0).unwrap().file;
    change::write(&server, file, 0, b"x").unwrap();
    assert_eq!(root.mode("/fc"), 0o6777);
    root.chown("/fc", 0, 0).unwrap();
    assert_eq!(root.mode("/fc"), 0o777);
    // A group that is not the owner's own takes no set-group-id.
    root.chown("/fd", OWNER, 777).unwrap();
    owner.chmod("/fd", 0o6755).unwrap();
    assert_eq!(root.mode("/fd"), 0o4755);
    change::finish(server, &disk);
}

impl By<'_> {
    fn set_xattr(
        &self,
        file: FileId,
        name: &str,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), Errno> {
        let request = SetXattrRequest {
            caller: self.1,
            file,
            flags,
            name: XattrName::new(name.as_bytes()).unwrap(),
        };
        ask!(self.0, SetXattr, request, value)
    }
    fn xattr(&self, file: FileId, name: &str) -> Result<Vec<u8>, Errno> {
        let (caller, name) = (self.1, XattrName::new(name.as_bytes()).unwrap());
        let request = XattrRequest { caller, file, name };
        let mut reply;
        let value = call!(self.0, P, GetXattr, request, &mut Buffer::default(), reply);
        value.map(|value| value.0.to_vec())
    }
    fn xattrs(&self, file: FileId) -> Vec<u8> {
        let caller = self.1;
        let request = ListXattrRequest { caller, file };
        let mut reply;
        let names = call!(self.0, P, ListXattr, request, &mut Buffer::default(), reply);
        names.unwrap().0.to_vec()
    }
    fn remove_xattr(&self, file: FileId, name: &str) -> Result<(), Errno> {
        let (caller, name) = (self.1, XattrName::new(name.as_bytes()).unwrap());
        ask!(
            self.0,
            RemoveXattr,
            XattrRequest { caller, file, name },
            b""
        )
    }
}

#[test]
fn extended_attributes_follow_the_rights_of_their_namespace() {
    let (server, disk) = server("xattrs");
    let (root, other) = (By(&server, Caller::ROOT), By(&server, other()));
    let none = XattrFlags::empty();
    root.file("/f", 0o644, OWNER, GROUP);
    root.directory("/sticky", 0o1777);
    root.make("/fifo", 0o010_666).unwrap();
    let at = |name: &str| root.open(name, OpenFlags::empty(), 0).unwrap().file;
    let (file, sticky, fifo) = (at("/f"), at("/sticky"), at("/fifo"));
    let owner = By(&server, owner());
    assert_eq!(
        owner.set_xattr(file, "user.a", b"one", XattrFlags::CREATE),
        Ok(())
    );
    assert_eq!(
        owner.set_xattr(file, "user.a", b"two", XattrFlags::CREATE),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        owner.set_xattr(file, "user.b", b"", XattrFlags::REPLACE),
        Err(Errno::ENODATA)
    );
    for (name, errno) in [("user.a", Errno::EEXIST), ("user.b", Errno::ENODATA)] {
        let set = owner.set_xattr(file, name, b"", XattrFlags::all());
        assert_eq!(set, Err(errno), "{name}");
    }
    assert_eq!(other.set_xattr(file, "user.a", b"", none), NO);
    assert_eq!(other.xattr(file, "user.a"), Ok(b"one".to_vec()));
    assert_eq!(owner.set_xattr(file, "trusted.t", b"", none), NEVER);
    assert_eq!(owner.set_xattr(file, "security.s", b"", none), NEVER);
    assert_eq!(root.set_xattr(file, "trusted.t", b"hidden", none), Ok(()));
    assert_eq!(root.set_xattr(file, "security.s", b"seen", none), Ok(()));
    assert_eq!(owner.xattr(file, "trusted.t"), Err(Errno::ENODATA));
    assert_eq!(other.xattr(file, "security.s"), Ok(b"seen".to_vec()));
    assert_eq!(owner.xattrs(file), b"user.a\0security.s\0");
    assert_eq!(root.xattrs(file), b"user.a\0trusted.t\0security.s\0");
    for (name, errno) in [
        ("system.posix_acl_access", Errno::EOPNOTSUPP),
        ("other.x", Errno::EOPNOTSUPP),
        ("user.", Errno::EINVAL),
    ] {
        assert_eq!(root.set_xattr(file, name, b"", none), Err(errno), "{name}");
        assert_eq!(root.xattr(file, name), Err(errno), "{name}");
    }
    assert_eq!(other.set_xattr(sticky, "user.a", b"", none), NEVER);
    assert_eq!(owner.set_xattr(sticky, "user.a", b"", none), Ok(()));
    assert_eq!(root.set_xattr(fifo, "user.a", b"", none), NEVER);
    assert_eq!(root.xattr(fifo, "user.a"), Err(Errno::ENODATA));
    assert_eq!(
        root.set_xattr(file, "user.big", &[0; 5000], none),
        Err(Errno::ENOSPC)
    );
    assert_eq!(
        root.set_xattr(file, "user.big", &[0; 70_000], none),
        Err(Errno::E2BIG)
    );
    assert_eq!(root.set_xattr(file, "user.big", &[7; 3900], none), Ok(()));
    assert_eq!(root.xattr(file, "user.big"), Ok(vec![7; 3900]));
    assert_eq!(other.remove_xattr(file, "user.a"), NO);
    assert_eq!(owner.remove_xattr(file, "user.a"), Ok(()));
    assert_eq!(owner.remove_xattr(file, "user.a"), Err(Errno::ENODATA));
    change::finish(server, &disk);
}
