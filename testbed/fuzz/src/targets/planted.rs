//! A planted finding that shows that coverage guides the search: eight bytes that cannot be
//! guessed, of which each comparison reveals a part.
//!
//! Not among the targets that are run; `cargo xtask fuzz` first asks that it is found.

use crate::input::Input;

const MAGIC: u64 = 0x7e55_e4a1_c0de_f00d;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    assert!(
        input.u64() != MAGIC || input.u8() != b'!',
        "found what was planted"
    );
}
