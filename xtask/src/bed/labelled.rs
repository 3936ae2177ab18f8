//! Output of several nodes, with the node's name before each line.

use std::io::{self, Write};

/// Puts a name before each line, and writes whole lines only.
pub(crate) struct Labelled<W: Write> {
    name: String,
    line: Vec<u8>,
    to: W,
}

impl<W: Write> Labelled<W> {
    /// Lines of this node, written to `to`.
    pub(crate) fn new(name: &str, to: W) -> Self {
        let (name, line) = (name.into(), Vec::new());
        Self { name, line, to }
    }

    /// Writes a whole line by one call, so that lines of two nodes do not mix.
    fn end_line(&mut self) -> io::Result<()> {
        let text = String::from_utf8_lossy(&self.line);
        let line = format!("{}: {}\n", self.name, text.trim_end_matches('\r'));
        self.line.clear();
        self.to.write_all(line.as_bytes())
    }
}

impl<W: Write> Write for Labelled<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line()?;
            } else {
                self.line.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<W: Write> Drop for Labelled<W> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            // The reader may have gone; its output is then lost anyway.
            let _ = self.end_line();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_nodes_name() {
        let mut out = Vec::new();
        let mut labelled = Labelled::new("node1", &mut out);
        for part in [&b"one\r\ntw"[..], b"o\n", b"\n", b"end"] {
            labelled.write_all(part).expect("write");
        }
        drop(labelled);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "node1: one\nnode1: two\nnode1: \nnode1: end\n"
        );
    }
}
