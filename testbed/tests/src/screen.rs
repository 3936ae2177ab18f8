//! Text of a screen, by the glyphs that libos draws.

use std::fs;
use std::path::Path;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const HEIGHT: RasterHeight = RasterHeight::Size16;

/// Reads the text of a portable pixmap (`P6`, 8 bits a colour); what is no glyph is U+FFFD.
///
/// # Panics
/// If the file is none.
#[must_use]
pub fn text(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // Four words, each ended by one space.
    let mut rest = &bytes[..];
    let mut word = || {
        let end = rest
            .iter()
            .position(u8::is_ascii_whitespace)
            .expect("a header");
        let word = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        word
    };
    assert_eq!(word(), "P6");
    let [width, height, most] = [(); 3].map(|()| word().parse::<usize>().expect("a number"));
    assert_eq!((most, rest.len()), (255, width * height * 3));
    let (wide, high) = (get_raster_width(FontWeight::Regular, HEIGHT), HEIGHT.val());
    let cell = |line: usize, column: usize| {
        let is = |shown: &char| {
            let raster = get_raster(*shown, FontWeight::Regular, HEIGHT).expect("a glyph");
            let mut rows = raster.rows().enumerate();
            rows.all(|(y, row)| {
                let at = ((line * high + y) * width + column * wide) * 3;
                let pixels = rest[at..at + wide * 3].chunks(3);
                row.iter()
                    .zip(pixels)
                    .all(|(grey, pixel)| pixel == [*grey; 3])
            })
        };
        (' '..='~').find(is).unwrap_or('\u{fffd}')
    };
    let line = |line: usize| {
        let text: String = (0..width / wide).map(|column| cell(line, column)).collect();
        text.trim_end().to_owned()
    };
    let lines: Vec<String> = (0..height / high).map(line).collect();
    lines.join("\n").trim_end().to_owned()
}
