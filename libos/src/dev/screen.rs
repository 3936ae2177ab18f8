//! The screen that UEFI firmware set up, as a second console: each line of the log is drawn below
//! the last.
//!
//! The framebuffer is mapped uncached and never read. At the end of the screen a quarter of its
//! lines goes at once, and only the characters that differ are drawn: each pixel is a write to the
//! card.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use handover::Framebuffer;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const HEIGHT: RasterHeight = RasterHeight::Size16;
/// Pixels of a line of text.
pub(crate) const LINE_HEIGHT: usize = HEIGHT.val();
/// Pixels of a character's width.
pub(crate) const WIDTH: usize = get_raster_width(FontWeight::Regular, HEIGHT);
/// Bytes of a pixel.
const PIXEL: usize = 4;
/// Part of the lines that goes when there is no more room.
const SCROLLED_PART: usize = 4;
const TAB: usize = 8;
/// Larger screens than this are not believed.
const MAX_SIDE: u32 = 16_384;

/// Memory of 32-bit pixels.
pub(crate) trait Pixels {
    /// Stores the pixel whose number is `at`.
    fn put(&self, at: usize, color: u32);
}

/// A screen with text.
#[derive(Debug)]
pub(crate) struct Screen<P> {
    pixels: P,
    stride: usize,
    columns: usize,
    /// A character for each place, line by line.
    cells: Vec<u8>,
    line: usize,
    column: usize,
}

/// Returns the bytes of a framebuffer's pixels; `None` for one that can't be drawn on: too small
/// for a character, too large, or with fewer bytes than it has pixels.
#[must_use]
pub(crate) fn usable(buffer: &Framebuffer) -> Option<usize> {
    let Framebuffer {
        width,
        height,
        stride,
        ..
    } = *buffer;
    let sides = width <= stride && stride <= MAX_SIDE && height <= MAX_SIDE;
    let bytes = usize::try_from(stride).ok()? * usize::try_from(height).ok()? * PIXEL;
    let holds =
        usize::try_from(width).ok()? >= WIDTH && usize::try_from(height).ok()? >= LINE_HEIGHT;
    let fits = bytes as u64 <= buffer.len && buffer.address.is_multiple_of(PIXEL as u64);
    (sides && holds && fits).then_some(bytes)
}

impl<P: Pixels> Screen<P> {
    /// Clears a screen; `None` if [`usable`] says that it is none.
    pub(crate) fn new(pixels: P, buffer: &Framebuffer) -> Option<Self> {
        usable(buffer)?;
        let side = |pixels: u32| usize::try_from(pixels).ok();
        let (width, height) = (side(buffer.width)?, side(buffer.height)?);
        let stride = side(buffer.stride)?;
        for line in 0..height {
            for at in 0..width {
                pixels.put(line * stride + at, 0);
            }
        }
        let columns = width / WIDTH;
        Some(Self {
            pixels,
            stride,
            columns,
            cells: vec![b' '; columns * (height / LINE_HEIGHT)],
            line: 0,
            column: 0,
        })
    }

    fn lines(&self) -> usize {
        self.cells.len() / self.columns
    }

    fn byte(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                self.line += 1;
                self.column = 0;
            }
            b'\r' => {}
            b'\t' => self.column = (self.column / TAB + 1) * TAB,
            _ => {
                if self.column >= self.columns {
                    self.line += 1;
                    self.column = 0;
                }
                if self.line >= self.lines() {
                    self.scroll();
                }
                self.set(self.line * self.columns + self.column, byte);
                self.column += 1;
            }
        }
    }

    fn scroll(&mut self) {
        let gone = self.lines().div_ceil(SCROLLED_PART);
        for at in 0..self.cells.len() {
            let from = self.cells.get(at + gone * self.columns);
            let byte = from.copied().unwrap_or(b' ');
            self.set(at, byte);
        }
        self.line = self.lines() - gone;
    }

    /// Draws a character, unless it is there.
    fn set(&mut self, at: usize, byte: u8) {
        if core::mem::replace(&mut self.cells[at], byte) == byte {
            return;
        }
        let shown = match byte {
            b' '..=b'~' => char::from(byte),
            _ => '?',
        };
        let Some(raster) = get_raster(shown, FontWeight::Regular, HEIGHT) else {
            return;
        };
        let first = at / self.columns * LINE_HEIGHT * self.stride + at % self.columns * WIDTH;
        for (y, row) in raster.rows().enumerate() {
            for (x, &intensity) in row.iter().enumerate() {
                // Grey, whatever the order of the colours is.
                let color = u32::from_le_bytes([intensity, intensity, intensity, 0]);
                self.pixels.put(first + y * self.stride + x, color);
            }
        }
    }
}

impl<P: Pixels> fmt::Write for Screen<P> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // Of a character of several bytes, one is shown.
            if !(0x80..0xc0).contains(&byte) {
                self.byte(byte);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use core::cell::RefCell;
    use core::fmt::Write;

    use super::*;

    #[derive(Debug)]
    struct Memory(RefCell<Vec<u32>>);

    impl Pixels for &Memory {
        fn put(&self, at: usize, color: u32) {
            self.0.borrow_mut()[at] = color;
        }
    }

    fn buffer(width: u32, height: u32, stride: u32) -> Framebuffer {
        Framebuffer {
            address: 0x1000,
            len: u64::from(stride) * u64::from(height) * 4,
            width,
            height,
            stride,
            format: 1,
        }
    }

    /// Reads a line by its glyphs.
    fn read(memory: &Memory, buffer: &Framebuffer, line: usize) -> String {
        let stride = buffer.stride as usize;
        let cell = |column: usize| {
            let pixel = |x: usize, y: usize| {
                let at = (line * LINE_HEIGHT + y) * stride + column * WIDTH + x;
                memory.0.borrow()[at].to_le_bytes()[0]
            };
            let same = |shown: &char| {
                let raster = get_raster(*shown, FontWeight::Regular, HEIGHT).expect("a glyph");
                let mut rows = raster.rows().enumerate();
                rows.all(|(y, row)| (0..WIDTH).all(|x| row[x] == pixel(x, y)))
            };
            (' '..='~').find(same).unwrap_or('\u{fffd}')
        };
        let columns = buffer.width as usize / WIDTH;
        let text: String = (0..columns).map(cell).collect();
        text.trim_end().to_owned()
    }

    #[test]
    fn lines_are_drawn_cut_and_scrolled() {
        let columns = u32::try_from(20 * WIDTH).expect("small");
        let buffer = buffer(columns + 3, 16 * 8 + 5, columns + 11);
        let memory = Memory(RefCell::new(vec![
            7;
            usize::try_from(buffer.len)
                .expect("small")
                / 4
        ]));
        let mut screen = Screen::new(&memory, &buffer).expect("a screen");
        let shown = |line| read(&memory, &buffer, line);
        write!(
            screen,
            "first\nwith\ttab ü\nlonger than twenty characters\n"
        )
        .expect("drawn");
        assert_eq!(shown(0), "first");
        assert_eq!(shown(1), "with    tab ?");
        assert_eq!(
            (shown(2), shown(3)),
            ("longer than twenty c".into(), "haracters".into())
        );
        for number in 4..9 {
            writeln!(screen, "line {number}").expect("drawn");
        }
        // The ninth line had no room: two of eight went.
        assert_eq!(shown(0), "longer than twenty c");
        assert_eq!(
            (shown(5), shown(6), shown(7)),
            ("line 7".into(), "line 8".into(), String::new())
        );
        let stride = buffer.stride as usize;
        let beside = |at: usize| at % stride >= buffer.width as usize;
        let pixels = memory.0.borrow();
        assert!(
            pixels
                .iter()
                .enumerate()
                .all(|(at, pixel)| !beside(at) || *pixel == 7)
        );
    }

    #[test]
    fn a_screen_that_can_t_be_is_none() {
        assert!(usable(&buffer(1280, 800, 1280)).is_some());
        let short = Framebuffer {
            len: 1280 * 800 * 4 - 1,
            ..buffer(1280, 800, 1280)
        };
        let odd = Framebuffer {
            address: 0x1002,
            ..buffer(1280, 800, 1280)
        };
        let bad = [
            short,
            odd,
            buffer(1280, 800, 1279),
            buffer(3, 800, 1280),
            buffer(640, 9, 640),
            buffer(20_000, 600, 20_000),
            Framebuffer::default(),
        ];
        for buffer in bad {
            assert!(usable(&buffer).is_none(), "{buffer:?}");
        }
    }
}
