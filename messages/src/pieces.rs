//! Writes to several places of a file, one behind the other in one run of bytes: for each its
//! offset, its length and its bytes.

/// Bytes in front of those of each piece.
pub const HEAD: usize = 12;
/// Bytes of all pieces of one [`Flush`](crate::storage::Flush), heads included, at most.
pub const MAX_PIECES: usize = 64 << 10;

/// A write to one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The first byte's offset in the file.
    pub offset: u64,
    /// Its bytes: at least one.
    pub bytes: &'a [u8],
}

impl Piece<'_> {
    /// Returns what stands in front of its bytes.
    ///
    /// # Panics
    ///
    /// When it has 4 GB.
    #[must_use]
    pub fn head(&self) -> [u8; HEAD] {
        let len = u32::try_from(self.bytes.len()).expect("a short piece");
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&self.offset.to_le_bytes());
        head[8..].copy_from_slice(&len.to_le_bytes());
        head
    }
}

/// Returns the pieces that bytes hold, in order; `None` for what is no piece: an empty one, one
/// that ends behind the bytes, or behind the greatest offset of Linux. Nothing follows that.
pub fn pieces(bytes: &[u8]) -> impl Iterator<Item = Option<Piece<'_>>> {
    let mut left = bytes;
    core::iter::from_fn(move || {
        if left.is_empty() {
            return None;
        }
        let piece = first(left);
        left = piece.map_or(&[], |(_, rest)| rest);
        Some(piece.map(|(piece, _)| piece))
    })
}

/// Returns how many blocks of a file the pieces of a run touch, their offsets being in order.
#[must_use]
pub fn count_blocks(bytes: &[u8], block_size: u32) -> u32 {
    let size = u64::from(block_size.max(1));
    let (mut blocks, mut behind) = (0, 0);
    for piece in pieces(bytes).flatten() {
        let first = (piece.offset / size).max(behind);
        let end = (piece.offset + piece.bytes.len() as u64).div_ceil(size);
        blocks += end.saturating_sub(first);
        behind = end.max(behind);
    }
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

fn first(bytes: &[u8]) -> Option<(Piece<'_>, &[u8])> {
    let (offset, rest) = bytes.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    let offset = u64::from_le_bytes(*offset);
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    let (bytes, rest) = rest.split_at_checked(len)?;
    let end = offset.checked_add(len as u64)?;
    let sound = len > 0 && end.cast_signed() > 0;
    sound.then_some((Piece { offset, bytes }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_as_they_were_put_and_nothing_follows_nonsense() {
        let mut bytes = Vec::new();
        let all = [(7, &b"seven"[..]), (0, b"x"), (1 << 40, b"far")];
        let all = all.map(|(offset, bytes)| Piece { offset, bytes });
        for piece in &all {
            bytes.extend(piece.head());
            bytes.extend(piece.bytes);
        }
        assert!(pieces(&bytes).eq(all.map(Some)));
        for cut in 1..bytes.len() {
            let read: Vec<_> = pieces(&bytes[..cut]).collect();
            let whole = read.iter().filter(|piece| piece.is_some()).count();
            assert!(read.iter().flatten().eq(&all[..whole]));
            assert!(read.len() <= whole + 1, "{cut}");
        }
        let empty = [&5u64.to_le_bytes()[..], &[0; 4]].concat();
        let beyond = [&(i64::MAX as u64).to_le_bytes()[..], &[1, 0, 0, 0, 9]].concat();
        for nonsense in [empty, beyond] {
            assert!(pieces(&nonsense).eq([None]));
        }
    }
}
