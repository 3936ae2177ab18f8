//! A plot of stacked bars, as SVG.

use std::fmt::Write as _;

/// Geometry, in pixels.
const WIDTH: f64 = 860.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 70.0;
const TOP: f64 = 84.0;
const BAR: f64 = 22.0;
const STEP: f64 = 34.0;
const FONT: &str = "font-family=\"sans-serif\" font-size=\"12\"";
/// Colours of the parts, told apart by people with any kind of colour vision (Okabe and Ito's, and
/// greys).
const COLOURS: [&str; 11] = [
    "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#f0e442", "#d55e00", "#cc79a7", "#555555",
    "#888888", "#aaaaaa", "#000000",
];

/// A bar: its name, and its parts in the order of the legend.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) parts: Vec<f64>,
}

/// Draws bars with a title and a legend of parts.
pub(super) fn stacked(title: &str, legend: &[&str], bars: &[Bar]) -> String {
    let longest = bars
        .iter()
        .map(|bar| bar.parts.iter().sum::<f64>())
        .fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / longest;
    let height = TOP + STEP * bars.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>{0}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"22\" {FONT} font-weight=\"bold\">{0}</text>\n",
        escape(title)
    );
    let colour = |part: usize| COLOURS[part % COLOURS.len()];
    for (part, name) in legend.iter().enumerate() {
        let (column, line) = ((part % 6) as f64, (part / 6) as f64);
        let (x, y) = (10.0 + column * 140.0, 34.0 + line * 20.0);
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"{}\" {FONT}>{}</text>",
            colour(part),
            x + 17.0,
            y + 10.0,
            escape(name)
        );
    }
    for (index, bar) in bars.iter().enumerate() {
        let y = TOP + STEP * index as f64;
        let text = y + BAR - 6.0;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{text}\" {FONT} text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            escape(&bar.name)
        );
        let mut x = LEFT;
        for (part, value) in bar
            .parts
            .iter()
            .enumerate()
            .filter(|(_, value)| **value > 0.0)
        {
            let width = value * scale;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{}\"/>",
                colour(part)
            );
            x += width;
        }
        let total: f64 = bar.parts.iter().sum();
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{text}\" {FONT}>{total:.0}</text>",
            x + 6.0
        );
    }
    svg + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_end_where_their_parts_do() {
        let bar = |name: &str, parts: &[f64]| Bar {
            name: name.into(),
            parts: parts.to_vec(),
        };
        let svg = stacked(
            "a <b>",
            &["x", "y"],
            &[bar("long", &[30.0, 70.0]), bar("short", &[0.0, 50.0])],
        );
        assert!(svg.contains("<title>a &lt;b&gt;</title>"));
        // 600 pixels are for the longest.
        assert!(
            svg.contains("width=\"180.0\"")
                && svg.contains("width=\"420.0\"")
                && svg.contains("width=\"300.0\"")
        );
        assert_eq!(svg.matches("<rect").count(), 1 + 2 + 3);
        assert!(svg.ends_with("</svg>\n"));
    }
}
