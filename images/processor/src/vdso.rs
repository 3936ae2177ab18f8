//! The vDSO: a shared library in every program's memory that tells the time without the kernel.
//!
//! Its code is the machine's ([`Platform::vdso`](crate::Platform::vdso)); here it becomes an ELF
//! image of one page, with the names and the version by which C libraries look for it (Linux
//! `arch/x86/entry/vdso/vdso.lds.S`, `vdso(7)`). All programs share two pages: the words that the
//! code reads, and behind them the image.
//!
//! ```text
//!   0x000  ELF header, two program headers
//!   0x100  symbols, their hash table, versions, strings, the dynamic section
//!   0xc00  code
//! ```

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use messages::PAGE_SIZE;
use pcache::Rights;

use crate::error::{Result, errno};
use crate::mm::Space;
use crate::mm::map::Place;
use crate::mm::object::Object;
use crate::mm::vma::{Backing, Vma, VmaFlags};
use crate::process::Node;

/// The vDSO's parts as the machine provides them: code, functions and the words that they read.
#[derive(Clone, Debug, Default)]
pub struct VdsoParts {
    /// The code; it lies [`CODE`] bytes into its page.
    pub code: &'static [u8],
    /// The functions by their names in C, and their places in the code.
    pub functions: Vec<(&'static str, usize)>,
    /// Content of the page before the image.
    pub data: Vec<u8>,
}

/// The place of the code in the image.
pub const CODE: usize = 0xc00;
/// Bytes of the image.
const PAGE: usize = 4096;
/// The library's own name, and the version of its functions.
const NAME: &str = "linux-vdso.so.1";
const VERSION: &str = "LINUX_2.6";

const TABLES: usize = 0x100;
const SYMBOL: usize = 24;
/// `STB_GLOBAL << 4 | STT_FUNC`.
const FUNCTION: u64 = 0x12;
const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PF_R: u64 = 4;
const PF_X: u64 = 1;

/// Returns the hash of a name as DT_HASH and versions have it (System V ABI, chapter 5, "Hash
/// Table").
fn hash(name: &str) -> u64 {
    let hash = name.bytes().fold(0_u32, |hash, byte| {
        let hash = (hash << 4).wrapping_add(byte.into());
        let top = hash & 0xf000_0000;
        (hash ^ top >> 24) & !top
    });
    hash.into()
}

/// An image under construction.
struct Image {
    bytes: Vec<u8>,
    end: usize,
}

impl Image {
    fn put(&mut self, at: usize, value: u64, len: usize) {
        self.bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }

    /// Puts fields of these lengths at the end.
    fn append(&mut self, fields: &[(u64, usize)]) {
        for &(value, len) in fields {
            self.put(self.end, value, len);
            self.end += len;
        }
    }

    fn align(&mut self, to: usize) -> u64 {
        self.end = self.end.next_multiple_of(to);
        self.end as u64
    }
}

/// The strings of the image: each name once, behind an empty one.
#[derive(Default)]
struct Strings(Vec<u8>);

impl Strings {
    fn add(&mut self, name: &str) -> u64 {
        if self.0.is_empty() {
            self.0.push(0);
        }
        let at = self.0.len() as u64;
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        at
    }
}

/// Builds the image; `None` if the code has no room.
fn image(parts: &VdsoParts) -> Option<Vec<u8>> {
    let mut image = Image {
        bytes: vec![0; PAGE],
        end: TABLES,
    };
    image
        .bytes
        .get_mut(CODE..)?
        .get_mut(..parts.code.len())?
        .copy_from_slice(parts.code);
    let mut strings = Strings::default();
    let (soname, version) = (strings.add(NAME), strings.add(VERSION));
    // Each function has the kernel's name and, for old programs, the C library's.
    let names = parts.functions.iter().flat_map(|&(name, at)| {
        [alloc::format!("__vdso_{name}"), name.into()].map(|name| (name, at))
    });
    let symbols: Vec<(u64, usize)> = names.map(|(name, at)| (strings.add(&name), at)).collect();
    let count = symbols.len() as u64 + 1;

    let symbols_at = image.align(8);
    image.end += SYMBOL;
    for (name, at) in symbols {
        let value = (CODE + at) as u64;
        image.append(&[(name, 4), (FUNCTION, 1), (0, 1), (1, 2), (value, 8), (0, 8)]);
    }
    // One bucket, whose chain has every symbol.
    let hash_at = image.align(8);
    image.append(&[(1, 4), (count, 4), (1, 4), (0, 4)]);
    (1..count).for_each(|index| image.append(&[((index + 1) % count, 4)]));
    let versions_at = image.align(8);
    image.append(&[(0, 2)]);
    (1..count).for_each(|_| image.append(&[(2, 2)]));
    let definitions_at = image.align(8);
    for (flags, index, text, name, next) in [(1, 1, NAME, soname, 28), (0, 2, VERSION, version, 0)]
    {
        image.append(&[
            (1, 2),
            (flags, 2),
            (index, 2),
            (1, 2),
            (hash(text), 4),
            (20, 4),
            (next, 4),
        ]);
        image.append(&[(name, 4), (0, 4)]);
    }
    let strings_at = image.align(8);
    let strings = strings.0;
    let room = image.bytes.get_mut(image.end..image.end + strings.len())?;
    room.copy_from_slice(&strings);
    image.end += strings.len();
    let dynamic_at = image.align(8);
    let entries = [
        (14, soname),
        (4, hash_at),
        (5, strings_at),
        (6, symbols_at),
        (10, strings.len() as u64),
        (11, SYMBOL as u64),
        (0x6fff_fff0, versions_at),
        (0x6fff_fffc, definitions_at),
        (0x6fff_fffd, 2),
        (0, 0),
    ];
    for (tag, value) in entries {
        image.append(&[(tag, 8), (value, 8)]);
    }
    let dynamic = dynamic_at..image.end as u64;
    if image.end > CODE {
        return None;
    }
    headers(&mut image, dynamic);
    Some(image.bytes)
}

/// Writes the ELF header and the program headers.
fn headers(image: &mut Image, dynamic: core::ops::Range<u64>) {
    const EM_X86_64: u64 = 62;
    const ET_DYN: u64 = 3;
    image.bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    image.end = 16;
    image.append(&[
        (ET_DYN, 2),
        (EM_X86_64, 2),
        (1, 4),
        (0, 8),
        (64, 8),
        (0, 8),
        (0, 4),
    ]);
    image.append(&[(64, 2), (56, 2), (2, 2), (64, 2), (0, 2), (0, 2)]);
    let len = dynamic.end - dynamic.start;
    image.append(&[(PT_LOAD, 4), (PF_R | PF_X, 4), (0, 8), (0, 8), (0, 8)]);
    image.append(&[(PAGE_SIZE, 8), (PAGE_SIZE, 8), (PAGE_SIZE, 8)]);
    image.append(&[
        (PT_DYNAMIC, 4),
        (PF_R, 4),
        (dynamic.start, 8),
        (dynamic.start, 8),
        (dynamic.start, 8),
    ]);
    image.append(&[(len, 8), (len, 8), (8, 8)]);
}

/// Makes the two pages that all programs share, in the kernel's space.
///
/// # Errors
///
/// ENOMEM if there is no memory for them.
pub(crate) async fn make<N: Node>(
    space: &Space<'static, N>,
    parts: &VdsoParts,
) -> Result<Arc<Object>> {
    let mut pages = parts.data.clone();
    pages.resize(PAGE, 0);
    pages.extend(image(parts).ok_or(errno::ENOMEM)?);
    let object = Arc::new(Object::default());
    let mut vma = Vma::anonymous(Rights::READ | Rights::WRITE);
    vma.flags |= VmaFlags::NORESERVE;
    vma.backing = Backing::Object(object.clone(), 0);
    let start = {
        let _change = space.change().await;
        space.map(Place::Wish(0), 2 * PAGE_SIZE, vma).await?
    };
    space.write(start, &pages).await?;
    Ok(object)
}

/// Maps the two pages into a program; returns the image's address.
///
/// # Errors
///
/// ENOMEM if there is no place for them.
pub(crate) async fn map<N: Node>(memory: &Space<'static, N>, object: &Arc<Object>) -> Result<u64> {
    let mut vma = Vma::anonymous(Rights::READ | Rights::EXEC);
    vma.flags |= VmaFlags::NORESERVE;
    vma.backing = Backing::Object(object.clone(), 0);
    // Above the stack, where nothing else is mapped unless a program asks for it.
    let place = Place::Free(memory.layout.stack_top);
    let start = memory.map(place, 2 * PAGE_SIZE, vma).await?;
    Ok(start + PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> VdsoParts {
        VdsoParts {
            code: &[0xc3; 100],
            functions: vec![("clock_gettime", 32), ("time", 64)],
            data: vec![1, 2, 3],
        }
    }

    #[test]
    fn the_image_is_a_library_with_the_functions_names_and_version() {
        use object::read::elf::{Dyn, FileHeader, ProgramHeader};
        let bytes = image(&parts()).unwrap();
        let endian = object::Endianness::Little;
        let header = object::elf::FileHeader64::<object::Endianness>::parse(&*bytes).unwrap();
        let headers = header.program_headers(endian, &*bytes).unwrap();
        let dynamic = headers[1].dynamic(endian, &*bytes).unwrap().unwrap();
        let place = |tag: i32| {
            let entry = dynamic
                .iter()
                .find(|entry| entry.tag32(endian) == Some(tag));
            usize::try_from(entry.unwrap().d_val(endian)).unwrap()
        };
        let word = |at: usize, len: usize| {
            let mut word = [0; 8];
            word[..len].copy_from_slice(&bytes[at..at + len]);
            usize::try_from(u64::from_le_bytes(word)).unwrap()
        };
        let string = |at: usize| {
            let start = place(5) + at;
            let len = bytes[start..].iter().position(|&byte| byte == 0).unwrap();
            core::str::from_utf8(&bytes[start..start + len]).unwrap()
        };
        // Through the one bucket's chain, as a loader walks it.
        let (hash_at, mut index, mut found) = (place(4), word(place(4) + 8, 4), Vec::new());
        while index != 0 {
            let symbol = place(6) + index * SYMBOL;
            assert_eq!(
                word(place(0x6fff_fff0) + index * 2, 2),
                2,
                "the version's index"
            );
            found.push((string(word(symbol, 4)), word(symbol + 8, 8)));
            index = word(hash_at + 12 + index * 4, 4);
        }
        let expected = [
            ("__vdso_clock_gettime", 0xc20),
            ("clock_gettime", 0xc20),
            ("__vdso_time", 0xc40),
            ("time", 0xc40),
        ];
        assert_eq!(found, expected);
        let version = place(0x6fff_fffc) + 28;
        assert_eq!(
            (word(version + 4, 2), string(word(version + 20, 4))),
            (2, VERSION)
        );
        assert_eq!(
            word(version + 8, 4),
            0x3ae_75f6,
            "as programs in Go have it in their runtime"
        );
        assert_eq!(&bytes[CODE..CODE + 100], &[0xc3; 100]);
    }

    #[test]
    fn code_that_does_not_fit_is_refused() {
        let code = vec![0xc3; 0x401].leak();
        let parts = VdsoParts { code, ..parts() };
        assert!(image(&parts).is_none());
    }
}
