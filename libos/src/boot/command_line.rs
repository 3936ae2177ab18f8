//! The kernel command line (see `docs/architecture.md`): options, then `--` and the program with
//! its arguments.

use alloc::string::String;
use alloc::vec::Vec;
use core::str::FromStr;

use crate::Error;

/// A command line, parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    options: Vec<(String, Option<String>)>,
    program: Vec<Vec<u8>>,
}

impl CommandLine {
    /// Parses the bytes that the boot loader handed over.
    ///
    /// # Errors
    ///
    /// [`Error::PercentEscape`] for a bad escape, [`Error::OptionText`] for an option that is not
    /// UTF-8.
    pub fn parse(line: &[u8]) -> Result<Self, Error> {
        let mut parsed = Self::default();
        let mut tokens = line.split(|&byte| byte == b' ');
        for token in tokens.by_ref().filter(|token| !token.is_empty()) {
            if token == b"--" {
                break;
            }
            // Split first: a decoded key or value may hold any byte, `=` as well.
            let mut halves = token.splitn(2, |&byte| byte == b'=');
            let key = text(halves.next().unwrap_or_default())?;
            let value = halves.next().map(text).transpose()?;
            parsed.options.push((key, value));
        }
        // Each space parts two arguments here: an empty one counts.
        for token in tokens {
            parsed.program.push(decode(token)?);
        }
        Ok(parsed)
    }

    /// Returns whether the option stands on the line, with a value or without.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.options.iter().any(|(name, _)| name == key)
    }

    /// The values given to a repeatable option, in order.
    pub fn values<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.options
            .iter()
            .filter(move |(name, _)| name == key)
            .filter_map(|(_, value)| value.as_deref())
    }

    /// The value of an option; the last one counts.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values(key).last()
    }

    /// The value of an option as a `T`, if it is given.
    ///
    /// # Errors
    ///
    /// [`Error::OptionValue`] when it is given and is none.
    pub fn parsed<T: FromStr>(&self, key: &str) -> Result<Option<T>, Error> {
        let parse = |value: &str| {
            value.parse().map_err(|_| Error::OptionValue {
                key: key.into(),
                value: value.into(),
            })
        };
        self.value(key).map(parse).transpose()
    }

    /// The value of an option as a size in bytes: a number with an optional suffix K, M or G
    /// (powers of 1024).
    ///
    /// # Errors
    ///
    /// [`Error::OptionValue`] when it is given and is none, or exceeds 64 bits.
    pub fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        let parse = |value: &str| {
            parse_size(value).ok_or_else(|| Error::OptionValue {
                key: key.into(),
                value: value.into(),
            })
        };
        self.value(key).map(parse).transpose()
    }

    /// The program and its arguments: what follows `--`.
    #[must_use]
    pub fn program(&self) -> &[Vec<u8>] {
        &self.program
    }
}

/// Reads `4096`, `4K`, `16M`, `1G`.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 1 << 10),
        b'M' | b'm' => (&text[..text.len() - 1], 1 << 20),
        b'G' | b'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn text(token: &[u8]) -> Result<String, Error> {
    String::from_utf8(decode(token)?).map_err(|error| Error::OptionText {
        bytes: error.into_bytes(),
    })
}

/// Undoes percent-encoding.
fn decode(token: &[u8]) -> Result<Vec<u8>, Error> {
    let mut decoded = Vec::with_capacity(token.len());
    let mut rest = token.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = [rest.next().copied(), rest.next().copied()];
        match digits.map(|digit| digit.and_then(|digit| char::from(digit).to_digit(16))) {
            [Some(high), Some(low)] => {
                decoded.push(u8::try_from(high << 4 | low).unwrap_or_default())
            }
            _ => {
                return Err(Error::PercentEscape {
                    token: token.into(),
                });
            }
        }
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn options_end_at_the_double_dash() {
        let line = CommandLine::parse(
            b" log=debug  strace peer=memory@fe80::1 peer=storage@fe80::2 -- /bin/ls -l --",
        )
        .expect("a legal line");
        assert_eq!(line.value("log"), Some("debug"));
        assert!(line.has("strace"));
        assert_eq!(line.value("strace"), None);
        assert_eq!(
            line.values("peer").collect::<Vec<_>>(),
            ["memory@fe80::1", "storage@fe80::2"]
        );
        assert_eq!(
            line.program(),
            [b"/bin/ls".to_vec(), b"-l".to_vec(), b"--".to_vec()]
        );
    }

    #[test]
    fn a_value_may_hold_equals_signs_and_escapes() {
        let line = CommandLine::parse(b"env=A=b%20c%25 env=B=").expect("a legal line");
        assert_eq!(line.values("env").collect::<Vec<_>>(), ["A=b c%", "B="]);
    }

    #[test]
    fn a_broken_escape_is_named() {
        for bad in ["%", "%2", "%zz", "a%+1"] {
            let error = CommandLine::parse(bad.as_bytes()).expect_err("an escape needs two digits");
            assert_eq!(error, Error::PercentEscape { token: bad.into() });
        }
    }

    #[test]
    fn sizes_take_suffixes_and_refuse_the_rest() {
        for (text, size) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("16M", Some(16 << 20)),
            ("1G", Some(1 << 30)),
        ] {
            assert_eq!(parse_size(text), size);
        }
        for bad in ["", "M", "-1", "+1K", "1T", "99999999999G", "0x10"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    fn encode(bytes: &[u8]) -> String {
        bytes
            .iter()
            .map(|&byte| match byte {
                b'a'..=b'z' | b'/' => char::from(byte).to_string(),
                _ => format!("%{byte:02x}"),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_argument_survives(arguments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..8)) {
            let encoded: String = arguments.iter().map(|argument| format!(" {}", encode(argument))).collect();
            let line = CommandLine::parse(format!("log=info --{encoded}").as_bytes()).expect("legal");
            prop_assert_eq!(line.program(), &arguments[..]);
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = CommandLine::parse(&bytes);
        }
    }
}
