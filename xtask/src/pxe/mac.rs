//! MAC addresses.

use std::fmt;
use std::str::FromStr;

/// The address of one network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mac([u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no MAC address: write it as 52:54:00:12:34:56");
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0; 6];
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            let plain = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            *byte = plain
                .then(|| u8::from_str_radix(part, 16).ok())
                .flatten()
                .ok_or_else(wrong)?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        // The lowest bit of the first byte marks a group (IEEE 802, section 8.2).
        if bytes[0] & 1 != 0 {
            return Err(format!(
                "{text:?} is the address of a group, not of a network card"
            ));
        }
        if bytes == [0; 6] {
            return Err(format!("{text:?} is the address of no network card"));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&pairs.join(":"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_read_in_both_notations() {
        let mac: Mac = "52:54:00:AB:cd:01".parse().expect("colons");
        assert_eq!("52-54-00-ab-CD-01".parse(), Ok(mac));
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:01");
    }

    #[test]
    fn what_is_no_card_s_address_is_refused() {
        let wrong = [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52:54:00:12:34:+5",
            "52:54-00:12:34:56",
            "525400123456",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ];
        for text in wrong {
            assert!(text.parse::<Mac>().is_err(), "{text:?}");
        }
    }
}
