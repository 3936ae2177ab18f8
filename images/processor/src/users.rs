//! The first program's user: by name or number, as the files `/etc/passwd` and `/etc/group` of S's
//! disk have it.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use messages::storage::{Caller, OpenFlags};

use crate::creds::Creds;
use crate::load::{Refusal, read_file};
use crate::platform::Files;
use crate::process::Node;

/// Bytes that are read of each of the files.
const MOST: usize = 1 << 20;

/// A user that a program runs as.
#[derive(Clone, PartialEq, Eq, Debug)]
struct User {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: Vec<u8>,
}

fn decimal(text: &[u8]) -> Option<u32> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = core::str::from_utf8(text).ok().filter(|_| digits)?;
    text.parse().ok().filter(|&number| number != u32::MAX)
}

/// Returns the lines' fields.
fn records(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = text.split(|&byte| byte == b'\n');
    lines.map(|line| line.split(|&byte| byte == b':').collect())
}

/// Finds `NAME`, `UID`, or either with `:GROUP` or `:GID` behind it. A number needs no entry: its
/// group is the same number then, its home `/`.
fn find(wanted: &[u8], passwd: &[u8], group: &[u8]) -> Option<User> {
    let mut parts = wanted.splitn(2, |&byte| byte == b':');
    let (user, wanted_group) = (parts.next()?, parts.next());
    let number = decimal(user);
    let entry = records(passwd).find_map(|fields| {
        let &[name, _, uid, gid, _, home, ..] = &fields[..] else {
            return None;
        };
        let (uid, gid) = (decimal(uid)?, decimal(gid)?);
        (name == user || number == Some(uid)).then_some((name, uid, gid, home))
    });
    let (name, uid, gid, home) = match (entry, number) {
        (Some(entry), _) => entry,
        (None, Some(number)) => (user, number, number, &b"/"[..]),
        (None, None) => return None,
    };
    let listed = records(group).filter_map(|fields| match &fields[..] {
        &[name, _, gid, members] => Some((name, decimal(gid)?, members)),
        _ => None,
    });
    let (gid, groups) = match wanted_group {
        Some(wanted) => {
            let mut named = listed.filter(|(name, ..)| *name == wanted);
            let named = named.next().map(|(_, gid, _)| gid);
            (decimal(wanted).or(named)?, Vec::new())
        }
        None => {
            let is_member =
                |members: &[u8]| members.split(|&byte| byte == b',').any(|each| each == name);
            let of = listed.filter(|(_, _, members)| is_member(members));
            (gid, of.map(|(_, gid, _)| gid).collect())
        }
    };
    Some(User {
        uid,
        gid,
        groups,
        home: home.to_vec(),
    })
}

/// Reads a file of S; nothing if there is none.
async fn text<N: Node>(node: &N, path: &[u8]) -> Vec<u8> {
    let files = node.files();
    let opened = files.open(Caller::ROOT, path, OpenFlags::READ, 0).await;
    let Ok(opened) = opened else {
        return Vec::new();
    };
    let len = usize::try_from(opened.stat.size).map_or(MOST, |size| size.min(MOST));
    let mut bytes = vec![0; len];
    let got = read_file(node, opened.file, 0, &mut bytes).await;
    bytes.truncate(got.unwrap_or(0));
    node.kernel().closing.add(opened.file);
    bytes
}

/// Returns the identity of a user, and the home folder; root's for an empty name.
///
/// # Errors
///
/// [`Refusal::UnknownUser`].
pub(crate) async fn identity<N: Node>(
    node: &N,
    wanted: &[u8],
) -> Result<(Creds, Option<Vec<u8>>), Refusal> {
    let mut creds = Creds::new(0, 0);
    if wanted.is_empty() {
        return Ok((creds, None));
    }
    let (passwd, group) = (
        text(node, b"/etc/passwd").await,
        text(node, b"/etc/group").await,
    );
    let unknown = || Refusal::UnknownUser(String::from_utf8_lossy(wanted).into_owned());
    let user = find(wanted, &passwd, &group).ok_or_else(unknown)?;
    let groups: Arc<[u32]> = user.groups.into();
    let became = creds
        .set_groups(groups)
        .and_then(|()| creds.set_gid(user.gid))
        .and_then(|()| creds.set_uid(user.uid));
    became.map_err(|_| unknown())?;
    Ok((creds, Some(user.home)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:100:Ann:/home/ann:/bin/sh\n\
        bad:x:-1:0::/:/bin/sh\n";
    const GROUP: &[u8] = b"users:x:100:\nvideo:x:44:bob,ann\naudio:x:29:annette\nkvm:x:104:ann\n";

    fn found(wanted: &str) -> Option<(u32, u32, Vec<u32>, String)> {
        let user = find(wanted.as_bytes(), PASSWD, GROUP)?;
        let home = String::from_utf8(user.home).unwrap();
        Some((user.uid, user.gid, user.groups, home))
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let ann = Some((1000, 100, vec![44, 104], "/home/ann".into()));
        assert_eq!(found("ann"), ann);
        assert_eq!(found("1000"), ann);
        assert_eq!(found("root"), Some((0, 0, vec![], "/root".into())));
        assert_eq!(found("7"), Some((7, 7, vec![], "/".into())));
        let other = |gid: u32| Some((1000, gid, vec![], "/home/ann".into()));
        assert_eq!((found("ann:5"), found("1000:video")), (other(5), other(44)));
        for unknown in [
            "bob",
            "bad",
            "",
            ":5",
            "ann:wheel",
            "ann:",
            "-1",
            "4294967295",
            "ann:1:2",
        ] {
            assert_eq!(found(unknown), None, "{unknown}");
        }
    }
}
