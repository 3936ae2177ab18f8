//! Hashes of names in indexed directories.
//!
//! After Linux `fs/ext4/hash.c`: the halved MD4 and TEA transforms and the old hash of ext3's first
//! days, each over signed or unsigned characters.

use crate::bytes::low32;

/// `DX_HASH_*` as stored in the root of an index.
const LEGACY: u8 = 0;
const HALF_MD4: u8 = 1;
const TEA: u8 = 2;

/// Hashes with the low bit clear are below this (`EXT4_HTREE_EOF_32BIT`).
const END: u32 = 0x7fff_ffff;

/// A file system's parameters of hashing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hasher {
    /// `s_hash_seed`.
    pub(crate) seed: [u32; 4],
    /// Characters are unsigned.
    pub(crate) unsigned: bool,
}

fn character(byte: u8, unsigned: bool) -> u32 {
    if unsigned {
        byte.into()
    } else {
        i32::from(byte.cast_signed()).cast_unsigned()
    }
}

/// Packs up to `4 * N` bytes of what is left of a name into words (`str2hashbuf_signed` and
/// `_unsigned`). The padding is the length that is left.
fn words<const N: usize>(left: &[u8], unsigned: bool) -> [u32; N] {
    let len = low32(left.len() as u64) & 0xff;
    let pad = len | len << 8 | len << 16 | len << 24;
    let mut words = [pad; N];
    for (word, bytes) in words.iter_mut().zip(left.chunks(4)) {
        *word = bytes.iter().fold(pad, |word, &byte| {
            character(byte, unsigned).wrapping_add(word << 8)
        });
    }
    words
}

fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    let f = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let g = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let h = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let [mut a, mut b, mut c, mut d] = *state;
    let mut round =
        |mix: &dyn Fn(u32, u32, u32) -> u32, constant: u32, order: [usize; 8], shifts: [u32; 4]| {
            for (at, &word) in order.iter().enumerate() {
                let sum = a
                    .wrapping_add(mix(b, c, d))
                    .wrapping_add(input[word])
                    .wrapping_add(constant);
                (a, b, c, d) = (d, sum.rotate_left(shifts[at % 4]), b, c);
            }
        };
    round(&f, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]);
    round(&g, 0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]);
    round(&h, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]);
    for (state, word) in state.iter_mut().zip([a, b, c, d]) {
        *state = state.wrapping_add(word);
    }
}

fn tea(state: &mut [u32; 4], input: &[u32; 4]) {
    let [mut low, mut high] = [state[0], state[1]];
    let [a, b, c, d] = *input;
    let mut sum: u32 = 0;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        let mix = |x: u32, p: u32, q: u32, sum: u32| {
            (x << 4).wrapping_add(p) ^ x.wrapping_add(sum) ^ (x >> 5).wrapping_add(q)
        };
        low = low.wrapping_add(mix(high, a, b, sum));
        high = high.wrapping_add(mix(low, c, d, sum));
    }
    state[0] = state[0].wrapping_add(low);
    state[1] = state[1].wrapping_add(high);
}

fn legacy(name: &[u8], unsigned: bool) -> u32 {
    let (mut first, mut second): (u32, u32) = (0x12a3_fe2d, 0x37ab_e8f9);
    for &byte in name {
        let mixed = character(byte, unsigned).wrapping_mul(7_152_373);
        let mut hash = second.wrapping_add(first ^ mixed);
        if hash & 0x8000_0000 != 0 {
            hash = hash.wrapping_sub(0x7fff_ffff);
        }
        second = first;
        first = hash;
    }
    first << 1
}

impl Hasher {
    /// Returns a name's hash; `None` for a hash function not known here.
    pub(crate) fn hash(&self, version: u8, name: &[u8]) -> Option<u32> {
        let mut state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
        if self.seed != [0; 4] {
            state = self.seed;
        }
        // Versions 3 to 5 are those of unsigned characters; on the disk they stand as 0 to 2.
        let unsigned = self.unsigned || version > TEA;
        let hash = match version % 3 {
            _ if version > 5 => return None,
            LEGACY => legacy(name, unsigned),
            HALF_MD4 => {
                for at in (0..name.len()).step_by(32) {
                    half_md4(&mut state, &words(&name[at..], unsigned));
                }
                state[1]
            }
            _ => {
                for at in (0..name.len()).step_by(16) {
                    tea(&mut state, &words(&name[at..], unsigned));
                }
                state[0]
            }
        };
        let hash = hash & !1;
        Some(if hash == END << 1 {
            (END - 1) << 1
        } else {
            hash
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_match_those_of_debugfs() {
        // `debugfs -R "dx_hash -h VERSION -s SEED NAME"` of e2fsprogs 1.47.0; UUID seeds are stored
        // in their byte order.
        let seed = [0x5cd2_3a6f, 0x314a_a166, 0xb490_b5a1, 0xf1b6_1aec];
        let hasher = Hasher {
            seed,
            unsigned: false,
        };
        let names = [
            "a",
            "a name of more than thirty-two characters",
            "n\u{e4}me",
        ];
        let golden = [
            (LEGACY, [0xe74b_53e2, 0xa889_3a20, 0x7c55_fda4]),
            (HALF_MD4, [0x3cf4_1b12, 0x280d_b3c0, 0x0000_6da6]),
            (TEA, [0x99db_c158, 0x964a_d6d6, 0xf8ed_7c2c]),
        ];
        for (version, hashes) in golden {
            for (name, hash) in names.into_iter().zip(hashes) {
                assert_eq!(
                    hasher.hash(version, name.as_bytes()),
                    Some(hash),
                    "{version} {name}"
                );
            }
        }
        assert_eq!(hasher.hash(6, b"a"), None);
    }
}
