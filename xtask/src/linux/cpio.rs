//! Writes the archive that Linux unpacks as its first root: cpio in the format `newc`
//! (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

/// An archive in the making. Folders are made as they are needed.
pub(crate) struct Archive<W> {
    to: W,
    inode: u32,
    folders: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// Creates an empty archive.
    pub(crate) fn new(to: W) -> Self {
        Self {
            to,
            inode: 0,
            folders: BTreeSet::new(),
        }
    }

    /// Adds a folder, and those that it lies in. Paths are relative.
    pub(crate) fn folder(&mut self, path: &str) -> io::Result<()> {
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.folders.insert(path.into());
        self.entry(path, FOLDER, &[])
    }

    /// Adds a file; `executable` for all.
    pub(crate) fn file(&mut self, path: &str, executable: bool, bytes: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, FILE | if executable { 0o755 } else { 0o644 }, bytes)
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, LINK, target.as_bytes())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.to)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match Path::new(path).parent().and_then(Path::to_str) {
            Some(parent) => self.folder(parent),
            None => Ok(()),
        }
    }

    /// Writes an entry: 13 numbers of 8 hexadecimal digits; then the name with its end mark, then
    /// the bytes, each padded to 4.
    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let too_long = |_| io::Error::other(format!("{path} is too long for an archive"));
        self.inode += 1;
        let name_len = u32::try_from(path.len() + 1).map_err(too_long)?;
        let len = u32::try_from(bytes.len()).map_err(too_long)?;
        write!(self.to, "070701")?;
        // Inode, mode, owner, group, links, time, length, device (2), special device (2), length of
        // the name, checksum.
        for number in [self.inode, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0] {
            write!(self.to, "{number:08x}")?;
        }
        self.to.write_all(path.as_bytes())?;
        self.pad(110 + path.len() + 1, 1)?;
        self.to.write_all(bytes)?;
        self.pad(bytes.len(), 0)
    }

    fn pad(&mut self, len: usize, end_mark: usize) -> io::Result<()> {
        let zeros = end_mark + len.next_multiple_of(4) - len;
        self.to.write_all(&[0; 4][..zeros])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_folder_and_fields_at_multiples_of_four() {
        let mut archive = Archive::new(Vec::new());
        archive.file("etc/x", false, b"hello").expect("file");
        archive.file("etc/y", true, b"").expect("file");
        let bytes = archive.finish().expect("end");
        let text = String::from_utf8(bytes).expect("text");
        assert_eq!(text.len() % 4, 0);
        assert!(text.starts_with("07070100000001000041ed"));
        assert_eq!(
            &text[110..116],
            "etc\0\0\0",
            "padded: 110 + 4 = 114, to 116"
        );
        let file = &text[116..];
        assert_eq!(&file[..22], "07070100000002000081a4");
        assert_eq!(&file[54..62], "00000005");
        assert_eq!(&file[110..124], "etc/x\0hello\0\0\0");
        assert_eq!(&file[124..146], "07070100000003000081ed");
        assert!(text.contains("TRAILER!!!\0"));
        assert_eq!(text.matches("etc\0").count(), 1, "a folder is made once");
    }
}
