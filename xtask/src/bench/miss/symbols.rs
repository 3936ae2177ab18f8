//! The frames of an image's instructions, by binutils' `addr2line`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::project;
use crate::tools::need;

/// Remedy if it is missing.
const REMEDY: &str = "`apt-get install binutils`";

/// An image with line information.
pub(in crate::bench) struct Symbols {
    image: PathBuf,
}

/// Frames by address, the innermost first.
pub(in crate::bench) type Chains = BTreeMap<u64, Vec<String>>;

impl Symbols {
    /// Reads the symbols of an image.
    pub(in crate::bench) fn of(image: &Path) -> Self {
        let image = image.to_owned();
        Self { image }
    }

    /// Returns the frames of each address, the innermost first.
    pub(in crate::bench) fn chains(
        &self,
        addresses: impl IntoIterator<Item = u64>,
        folder: &Path,
    ) -> Result<Chains> {
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
        ensure!(
            output.status.success(),
            "addr2line ended with {}",
            output.status
        );
        let root = format!("{}/", project::root().display());
        Ok(parse(&String::from_utf8_lossy(&output.stdout), &root))
    }
}

/// Returns the first instruction of each function that a pattern fits, inlined or not.
///
/// That is the lowest address that was executed, once for each function with a symbol. Compilers
/// lay code out in the order of its execution, mostly.
pub(super) fn first_instructions(chains: &Chains, patterns: &[&str]) -> Vec<u64> {
    let fits = |frame: &String| patterns.iter().any(|pattern| frame.contains(pattern));
    let mut firsts = BTreeMap::<&str, u64>::new();
    for (&address, chain) in chains {
        if let Some(symbol) = chain.last().filter(|_| chain.iter().any(fits)) {
            // Addresses come in ascending order.
            firsts.entry(symbol).or_insert(address);
        }
    }
    firsts.into_values().collect()
}

/// Reads what addr2line says: a line with the address, and two lines a frame.
fn parse(text: &str, root: &str) -> Chains {
    let mut chains = Chains::new();
    let (mut lines, mut now) = (text.lines(), None);
    while let Some(line) = lines.next() {
        if let Some(address) = line.strip_prefix("0x") {
            now = u64::from_str_radix(address, 16).ok();
        } else if let (Some(address), Some(place)) = (now, lines.next()) {
            let file = file(place, root);
            // Outside our tree, paths tell more: a generic function has the file of its crate.
            let name = if place.starts_with(root) {
                bare(line)
            } else {
                function(line)
            };
            let frame = format!("{file} {name}");
            chains.entry(address).or_default().push(frame);
        }
    }
    chains
}

/// Returns a function's name without the type arguments that inlined ones carry.
fn function(name: &str) -> &str {
    match name.split_once('<') {
        Some((head, _)) if !head.is_empty() && !head.contains("::") => head,
        _ => name,
    }
}

/// Returns a function's name without its path, which inlined ones lack; for a closure its
/// function's name.
fn bare(name: &str) -> &str {
    let (mut depth, mut starts) = (0_i32, vec![0]);
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'<' => depth += 1,
            b'>' => depth -= 1,
            b':' if depth == 0 && name[..at].ends_with(':') => starts.push(at + 1),
            _ => {}
        }
    }
    let is_closure = |start: &&usize| name[**start..].starts_with("{{");
    let start = starts.iter().rev().find(|start| !is_closure(start));
    function(&name[start.copied().unwrap_or(0)..])
}

/// Returns a file's path in the tree, in the standard library or in a crate.
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
            ["rust:core/src/ptr/mod.rs write", "a/src/d.rs d"]
        );
        assert_eq!(chains[&0xffff_ffff_8000_0020], ["?? enter_user"]);
        assert_eq!(
            chains[&0xffff_ffff_8000_0030],
            ["task-4.7/src/raw.rs {closure#0}"]
        );
    }

    #[test]
    fn names_keep_their_path() {
        assert_eq!(
            function("<a::B<P> as c::D>::poll"),
            "<a::B<P> as c::D>::poll"
        );
        assert_eq!(function("a::B<M>::attempt"), "a::B<M>::attempt");
        assert_eq!(function("find_map<a::B, fn(C)>"), "find_map");
        assert_eq!(bare("<a::B<P> as c::D>::poll"), "poll");
        assert_eq!(
            bare("a::<impl b::C<M>>::page::{{closure}}"),
            "page::{{closure}}"
        );
        assert_eq!(bare("{closure#0}<!, x::y>"), "{closure#0}");
        assert_eq!(bare("enter"), "enter");
    }

    #[test]
    fn a_function_begins_at_its_lowest_address() {
        let chain = |frames: &[&str]| frames.iter().map(|&frame| frame.to_owned()).collect();
        let chains: Chains = [
            (1, chain(&["a.rs outer"])),
            (2, chain(&["b.rs look", "a.rs outer"])),
            (3, chain(&["rust:x.rs get", "b.rs look", "a.rs outer"])),
            (9, chain(&["b.rs look"])),
        ]
        .into();
        assert_eq!(first_instructions(&chains, &["b.rs look"]), [2, 9]);
        assert!(first_instructions(&chains, &["c.rs"]).is_empty());
    }
}
