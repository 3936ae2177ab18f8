//! Sizes of an image's parts: by crate, and by symbol.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use object::{Object, ObjectSymbol, SymbolKind};

/// Bytes by name, the most first.
type Sizes = Vec<(String, u64)>;

/// Sizes of an image.
pub(super) struct Symbols {
    /// By crate. A generic function counts for the crate that defines it, not for the one whose
    /// types it is compiled for.
    pub(super) crates: Sizes,
    /// By symbol.
    pub(super) symbols: Sizes,
}

/// Returns the sizes of an image's symbols; `demangle` gives a symbol's name as it is written.
pub(super) fn symbols(file: &[u8], demangle: impl Fn(&str) -> String) -> Result<Symbols> {
    let parsed = object::File::parse(file).context("an image is not an ELF file")?;
    let (mut crates, mut symbols) = (BTreeMap::new(), BTreeMap::new());
    for symbol in parsed.symbols() {
        if !matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Data) || symbol.size() == 0 {
            continue;
        }
        let name = demangle(symbol.name().unwrap_or_default());
        *crates.entry(crate_of(&name).to_owned()).or_default() += symbol.size();
        *symbols.entry(name).or_default() += symbol.size();
    }
    Ok(Symbols {
        crates: sorted(crates),
        symbols: sorted(symbols),
    })
}

fn sorted(sizes: BTreeMap<String, u64>) -> Sizes {
    let mut sizes: Sizes = sizes.into_iter().collect();
    // The sort is stable, so equal sizes stay in the order of their names.
    sizes.sort_by_key(|&(_, size)| std::cmp::Reverse(size));
    sizes
}

/// Returns the crate of a symbol: the first word of its path, or of the type whose method it is.
fn crate_of(name: &str) -> &str {
    let path = name.trim_start_matches(['<', '&', '*', '[', '(']);
    let path = ["mut ", "const ", "dyn "]
        .iter()
        .fold(path, |path, word| path.strip_prefix(word).unwrap_or(path));
    match path.split_once("::") {
        Some((first, _)) if is_word(first) => first,
        _ => "(no crate)",
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_belong_to_crates() {
        for (name, of) in [
            ("fit::node::Fit<D,P>::new", "fit"),
            ("<ext4::fs::Ext4<D> as core::fmt::Debug>::fmt", "ext4"),
            (
                "<&mut libos::dev::Serial as core::fmt::Write>::write_str",
                "libos",
            ),
            ("core::ptr::drop_in_place<storage::Server>", "core"),
            ("enter_user", "(no crate)"),
            ("", "(no crate)"),
        ] {
            assert_eq!(crate_of(name), of, "{name}");
        }
    }

    #[test]
    fn sizes_are_sorted_and_equal_names_are_one() {
        let own = std::env::current_exe().expect("a path");
        let file = std::fs::read(own).expect("this program");
        let found = symbols(&file, |_| "a::b".into()).expect("an ELF file");
        let [(name, size)] = &found.crates[..] else {
            panic!("{:?}", found.crates);
        };
        assert!(name == "a" && *size > 0);
        let found = symbols(&file, str::to_owned).expect("an ELF file");
        assert!(found.symbols.len() > 100);
        assert!(found.symbols.is_sorted_by(|a, b| a.1 >= b.1));
        assert!(symbols(b"MZ", str::to_owned).is_err());
    }
}
