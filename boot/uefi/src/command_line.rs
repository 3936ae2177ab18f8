//! The kernel command line, from the places where it may stand.
//!
//! In this order, the first that has one counts: the load options (a boot entry, the UEFI shell,
//! iPXE), a file on the volume that the loader came from ([`FILE`]), the section of the loader's
//! own file.

use alloc::string::String;
use alloc::vec::Vec;

/// The name of the file in the root folder of the volume.
pub const FILE: &str = "tessera.cmdline";
/// The longest line that is taken; libos takes no longer one.
pub const MAX_LEN: usize = 64 << 10;

/// Reads load options: text in UCS-2, which begins with the program's name where a shell wrote it.
///
/// `None` where it is something else, as firmware's own entries have bytes of another meaning
/// there, or no option with a value, as every node needs some.
#[must_use]
pub fn from_load_options(bytes: &[u8]) -> Option<String> {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .collect();
    let text = String::from_utf16(&units).ok()?;
    let text = text.trim_end_matches('\0').trim();
    let first = text.split(' ').next().unwrap_or_default();
    let rest = if first.to_ascii_lowercase().ends_with(".efi") {
        &text[first.len()..]
    } else {
        text
    };
    checked(rest.trim())
}

/// Reads a file or a section: lines, of which those that begin with `#` are remarks, joined by
/// spaces.
#[must_use]
pub fn from_text(bytes: &[u8]) -> Option<String> {
    let text = core::str::from_utf8(bytes).ok()?;
    let text = text.trim_end_matches('\0');
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    checked(&lines.join(" "))
}

fn checked(line: &str) -> Option<String> {
    let plain = line
        .bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic());
    (plain && line.contains('=') && line.len() <= MAX_LEN).then(|| line.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ucs2(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn load_options_are_text_without_the_programs_name() {
        let line = |text: &str| from_load_options(&ucs2(text));
        assert_eq!(
            line("cluster=a key=b\0").as_deref(),
            Some("cluster=a key=b")
        );
        assert_eq!(
            line("FS0:\\Memory.EFI cluster=a\0").as_deref(),
            Some("cluster=a")
        );
        assert_eq!(line("memory.efi\0"), None);
        assert_eq!(line(""), None);
    }

    #[test]
    fn load_options_that_are_no_text_are_not_taken() {
        assert_eq!(
            from_load_options(&[0x4e, 0xac, 0x08, 0x81, 0x3d, 0, 1, 2]),
            None
        );
        assert_eq!(from_load_options(&[0x3d, 0xd8, 0x3d, 0x00]), None);
        assert_eq!(from_load_options(b"="), None);
        assert_eq!(from_load_options(&ucs2(&"a=".repeat(MAX_LEN))), None);
    }

    #[test]
    fn a_file_may_have_lines_and_remarks() {
        let text = b"# the first rack\r\ncluster=a\r\n\r\n  key=b  \n# key=c\n";
        assert_eq!(from_text(text).as_deref(), Some("cluster=a key=b"));
        assert_eq!(from_text(b"cluster=\xff"), None);
        assert_eq!(from_text(b"\0\0"), None);
    }
}
