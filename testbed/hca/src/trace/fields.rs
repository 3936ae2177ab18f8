//! A layout's fields as text, from its `Debug` form: names joined by dots, without the fields that
//! are zero.

use core::fmt::Debug;
use core::fmt::Write;

/// Returns the fields of a value that are not zero, in order: name and value.
///
/// Names of nested structures are joined by dots, places in arrays stand in brackets. Arrays of
/// bytes are one field of hex digits. Numbers are hexadecimal.
pub fn fields(value: &impl Debug) -> Vec<(String, String)> {
    let mut out = Vec::new();
    walk(&format!("{value:x?}"), String::new(), &mut out);
    out
}

/// Takes one value of a `Debug` text apart.
fn walk(text: &str, path: String, out: &mut Vec<(String, String)>) {
    let text = text.trim();
    if let Some(inner) = within(text, " {", '}') {
        for (name, value) in split(inner).iter().filter_map(|part| part.split_once(": ")) {
            let dot = if path.is_empty() { "" } else { "." };
            walk(value, format!("{path}{dot}{name}"), out);
        }
    } else if let Some(inner) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        walk_array(inner, &path, out);
    } else if let Some(inner) = within(text, "(", ')') {
        walk(inner, path, out);
    } else if !is_nothing(text) {
        out.push((path, scalar(text)));
    }
}

fn walk_array(inner: &str, path: &str, out: &mut Vec<(String, String)>) {
    let parts = split(inner);
    let bytes: Option<Vec<u8>> = parts
        .iter()
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    match bytes {
        Some(bytes) if bytes.iter().all(|byte| *byte == 0) => {}
        Some(bytes) => {
            let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
                // Writing to a string does not fail.
                let _ = write!(hex, "{byte:02x}");
                hex
            });
            out.push((path.into(), hex));
        }
        None => {
            for (index, part) in parts.iter().enumerate() {
                walk(part, format!("{path}[{index}]"), out);
            }
        }
    }
}

/// Returns the text between a name followed by `open` and the closing bracket at the end.
fn within<'a>(text: &'a str, open: &str, close: char) -> Option<&'a str> {
    let (name, rest) = text.split_once(open)?;
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_name {
        rest.strip_suffix(close)
    } else {
        None
    }
}

/// Splits at the commas that stand outside of brackets and before a field's name or an element.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

fn is_nothing(text: &str) -> bool {
    matches!(text, "" | "0" | "0x0" | "false" | "0x0 (2^0)" | "None")
}

/// Adds `0x` to a hexadecimal number; other text stays.
fn scalar(text: &str) -> String {
    if text.chars().all(|c| c.is_ascii_hexdigit()) {
        format!("0x{text}")
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx4_hw::bits::{Low, TableBase};
    use mlx4_hw::init_hca::{InitFlags, InitHca, VERSION};
    use zerocopy::{FromBytes, FromZeros, IntoBytes};

    #[test]
    fn a_layout_becomes_its_fields_without_zeros() {
        let mut init = InitHca::new_zeroed();
        init.version = VERSION;
        init.flags = InitFlags::new().with_ipoib_checksum(true);
        init.qpc = TableBase::new(0x1_0800_0000, 18);
        init.log_mpts = Low::new(19);
        init.driver[..2].copy_from_slice(b"hi");
        let found = fields(&init);
        let found: Vec<_> = found
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            found[..4],
            [
                ("version", "0x2"),
                ("flags.ipoib_checksum", "true"),
                ("qpc", "0x108000000 (2^18)"),
                ("log_mpts", "0x13"),
            ]
        );
        assert_eq!(found[4].0, "driver");
        assert!(found[4].1.starts_with("68690000"));
    }

    #[test]
    fn what_no_field_is_known_for_is_not_lost() {
        let mut bytes = InitHca::new_zeroed().as_bytes().to_vec();
        bytes[0x28] = 7;
        let init = InitHca::read_from_bytes(&bytes).expect("its length");
        let found = fields(&init);
        assert_eq!(found.len(), 1);
        assert!(found[0].0.starts_with("_reserved_01c"));
    }
}
