//! An image's symbols and the frames of its instructions, by binutils' `nm` and `addr2line`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::project;
use crate::tools::{need, quiet};

/// Remedy if one of the two programs is missing.
const REMEDY: &str = "`apt-get install binutils`";

/// An image with line information.
pub(super) struct Symbols {
    image: PathBuf,
    named: Vec<(u64, String)>,
}

impl Symbols {
    /// Reads an image's symbols.
    pub(super) fn read(image: &Path) -> Result<Self> {
        let nm = need("nm", REMEDY)?;
        let text = quiet(Command::new(nm).arg("-C").arg(image))?;
        let named: Vec<_> = text.lines().filter_map(symbol).collect();
        ensure!(!named.is_empty(), "{} has no symbols", image.display());
        let image = image.to_owned();
        Ok(Self { image, named })
    }

    /// Returns the addresses of the functions of that name.
    pub(super) fn addresses(&self, name: &str) -> Vec<u64> {
        let wanted = |(_, its): &&(u64, String)| its == name;
        self.named
            .iter()
            .filter(wanted)
            .map(|(address, _)| *address)
            .collect()
    }

    /// Returns the frames of each address, the innermost first.
    pub(super) fn chains(
        &self,
        addresses: impl IntoIterator<Item = u64>,
        folder: &Path,
    ) -> Result<BTreeMap<u64, Vec<String>>> {
        let addr2line = need("addr2line", REMEDY)?;
        let mut text = String::new();
        for address in addresses {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{address:x}");
        }
        let list = folder.join("addresses");
        std::fs::write(&list, text).with_context(|| format!("can't write {}", list.display()))?;
        let list = File::open(&list).with_context(|| format!("can't read {}", list.display()))?;
        let output = Command::new(addr2line)
            .args(["-a", "-f", "-i", "-C", "-e"])
            .arg(&self.image)
            .stdin(list)
            .stderr(Stdio::inherit())
            .output()
            .context("can't run addr2line")?;
        ensure!(output.status.success(), "addr2line ended with {}", output.status);
        let root = format!("{}/", project::root().display());
        Ok(parse(&String::from_utf8_lossy(&output.stdout), &root))
    }
}

/// A line of `nm`: address, type, name.
fn symbol(line: &str) -> Option<(u64, String)> {
    let mut words = line.splitn(3, ' ');
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
    is_code.then_some((address, words.next()?.to_owned()))
}

/// Reads what addr2line says: a line with the address, and two lines a frame.
fn parse(text: &str, root: &str) -> BTreeMap<u64, Vec<String>> {
    let mut chains: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    let (mut lines, mut now) = (text.lines(), None);
    while let Some(line) = lines.next() {
        if let Some(address) = line.strip_prefix("0x") {
            now = u64::from_str_radix(address, 16).ok();
        } else if let (Some(address), Some(place)) = (now, lines.next()) {
            let frame = format!("{} {}", file(place, root), function(line));
            chains.entry(address).or_default().push(frame);
        }
    }
    chains
}

/// A function's name without the type arguments that inlined ones carry.
fn function(name: &str) -> &str {
    match name.split_once('<') {
        Some((head, _)) if !head.is_empty() && !head.contains("::") => head,
        _ => name,
    }
}

/// A file by its path in the tree, in the standard library or in a crate.
fn file<'a>(place: &'a str, root: &str) -> std::borrow::Cow<'a, str> {
    let path = place.split(" (").next().unwrap_or(place);
    let path = path.rsplit_once(':').map_or(path, |(path, _)| path);
    if let Some(ours) = path.strip_prefix(root) {
        return ours.into();
    }
    let below = |mark: &str, depth: usize| {
        let (_, rest) = path.split_once(mark)?;
        rest.splitn(depth + 1, '/').nth(depth)
    };
    if let Some(theirs) = below("/registry/src/", 1) {
        return theirs.into();
    }
    // The compiler's commit comes between.
    match below("/rustc/", 2).or_else(|| below("/rustlib/src/rust/library/", 0)) {
        Some(theirs) => format!("rust:{theirs}").into(),
        None => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_from_the_innermost_out() {
        let text = "0xffffffff80000010\nwrite<u64>\n/rustc/0123/library/core/src/ptr/mod.rs:7 (discriminator 2)\n\
            a::<impl b::C<M>>::d\n/tree/a/src/d.rs:9\n0xffffffff80000020\nenter_user\n??:?\n\
            0xffffffff80000030\n{closure#0}<!, x::y>\n/h/.cargo/registry/src/index-1/task-4.7/src/raw.rs:1\n";
        let chains = parse(text, "/tree/");
        assert_eq!(
            chains[&0xffff_ffff_8000_0010],
            [
                "rust:core/src/ptr/mod.rs write",
                "a/src/d.rs a::<impl b::C<M>>::d"
            ]
        );
        assert_eq!(chains[&0xffff_ffff_8000_0020], ["?? enter_user"]);
        assert_eq!(
            chains[&0xffff_ffff_8000_0030],
            ["task-4.7/src/raw.rs {closure#0}"]
        );
    }

    #[test]
    fn names_keep_their_path() {
        assert_eq!(function("<a::B<P> as c::D>::poll"), "<a::B<P> as c::D>::poll");
        assert_eq!(function("a::B<M>::attempt"), "a::B<M>::attempt");
        assert_eq!(function("find_map<a::B, fn(C)>"), "find_map");
    }

    #[test]
    fn only_code_is_a_symbol() {
        assert_eq!(
            symbol("ffffffff80000000 T a::<b c>::d"),
            Some((0xffff_ffff_8000_0000, "a::<b c>::d".into()))
        );
        assert_eq!(symbol("ffffffff80000000 B data"), None);
        assert_eq!(symbol("                 U missing"), None);
    }
}
