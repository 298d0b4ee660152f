//! The times of `%START_TIME(...)%`: strftime's conversions in UTC, with Envoy's own for fractions
//! of a second (`%f`, `%3f`) and for seconds since 1970 (`%s`).

use std::fmt::Write as _;
use std::time::SystemTime;

use time::OffsetDateTime;

/// A format that is known to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TimeFormat(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Conversion(char),
    /// So many digits of the fraction of a second.
    Fraction(u8),
}

/// What stands for more than one conversion.
const SHORTHANDS: &[(char, &str)] = &[
    ('F', "%Y-%m-%d"),
    ('T', "%H:%M:%S"),
    ('D', "%m/%d/%y"),
    ('R', "%H:%M"),
    ('r', "%I:%M:%S %p"),
    ('c', "%a %b %e %H:%M:%S %Y"),
    ('x', "%m/%d/%y"),
    ('X', "%H:%M:%S"),
    ('h', "%b"),
];

const CONVERSIONS: &str = "YmdeHIMSyjbBaAupPsZzGV";

impl Default for TimeFormat {
    /// LOG-3, field 1: UTC with milliseconds.
    fn default() -> Self {
        Self::parse("%Y-%m-%dT%H:%M:%S.%3fZ").expect("every conversion of it is known")
    }
}

impl TimeFormat {
    /// Reads a format.
    ///
    /// # Errors
    /// The conversion that is not known.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        read(text, &mut pieces)?;
        Ok(Self(pieces))
    }

    /// `at` in this format; `-` for a time that no calendar here holds.
    pub(super) fn print(&self, at: SystemTime) -> String {
        let Some(at) = since_1970(at) else { return "-".to_owned() };
        let mut out = String::with_capacity(32);
        for piece in &self.0 {
            // Writing to a String cannot fail.
            let _ = match piece {
                Piece::Literal(text) => out.write_str(text),
                Piece::Fraction(digits) => {
                    let shown = at.nanosecond() / 10_u32.pow(9 - u32::from(*digits));
                    write!(out, "{shown:0width$}", width = usize::from(*digits))
                }
                Piece::Conversion(which) => convert(&mut out, *which, at),
            };
        }
        out
    }
}

fn since_1970(at: SystemTime) -> Option<OffsetDateTime> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let seconds = i64::try_from(since.as_secs()).ok()?;
    let second = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    second.replace_nanosecond(since.subsec_nanos()).ok()
}

fn read(text: &str, pieces: &mut Vec<Piece>) -> Result<(), String> {
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        push_literal(pieces, &rest[..at]);
        let mut chars = rest[at + 1..].chars();
        let Some(next) = chars.next() else {
            return Err(format!("\"{text}\" ends within a conversion"));
        };
        rest = chars.as_str();
        match next {
            '%' => push_literal(pieces, "%"),
            'n' => push_literal(pieces, "\n"),
            't' => push_literal(pieces, "\t"),
            'f' => pieces.push(Piece::Fraction(9)),
            '1'..='9' if rest.starts_with('f') => {
                // A digit's value fits.
                pieces.push(Piece::Fraction(next as u8 - b'0'));
                rest = &rest[1..];
            }
            // Absl's seconds with a fraction, `%E3S`.
            'E' if matches!(rest.as_bytes(), [b'1'..=b'9', b'S', ..]) => {
                pieces.push(Piece::Conversion('S'));
                push_literal(pieces, ".");
                pieces.push(Piece::Fraction(rest.as_bytes()[0] - b'0'));
                rest = &rest[2..];
            }
            other => match SHORTHANDS.iter().find(|(short, _)| *short == other) {
                Some((_, long)) => read(long, pieces)?,
                None if CONVERSIONS.contains(other) => pieces.push(Piece::Conversion(other)),
                None => return Err(format!("%{other} is not a conversion of times known here")),
            },
        }
    }
    push_literal(pieces, rest);
    Ok(())
}

fn push_literal(pieces: &mut Vec<Piece>, text: &str) {
    if text.is_empty() {
        return;
    }
    match pieces.last_mut() {
        Some(Piece::Literal(before)) => before.push_str(text),
        _ => pieces.push(Piece::Literal(text.to_owned())),
    }
}

fn convert(out: &mut String, which: char, at: OffsetDateTime) -> std::fmt::Result {
    match which {
        'Y' => write!(out, "{}", at.year()),
        'y' => write!(out, "{:02}", at.year().rem_euclid(100)),
        'm' => write!(out, "{:02}", u8::from(at.month())),
        'd' => write!(out, "{:02}", at.day()),
        'e' => write!(out, "{:2}", at.day()),
        'j' => write!(out, "{:03}", at.ordinal()),
        'H' => write!(out, "{:02}", at.hour()),
        'I' => write!(out, "{:02}", (at.hour() + 11) % 12 + 1),
        'M' => write!(out, "{:02}", at.minute()),
        'S' => write!(out, "{:02}", at.second()),
        'p' => out.write_str(if at.hour() < 12 { "AM" } else { "PM" }),
        'P' => out.write_str(if at.hour() < 12 { "am" } else { "pm" }),
        'b' => out.write_str(&at.month().to_string()[..3]),
        'B' => write!(out, "{}", at.month()),
        'a' => out.write_str(&at.weekday().to_string()[..3]),
        'A' => write!(out, "{}", at.weekday()),
        'u' => write!(out, "{}", at.weekday().number_from_monday()),
        's' => write!(out, "{}", at.unix_timestamp()),
        'G' => write!(out, "{}", at.to_iso_week_date().0),
        'V' => write!(out, "{:02}", at.iso_week()),
        'Z' => out.write_str("UTC"),
        // The only one left: times are in UTC.
        _ => out.write_str("+0000"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// LOG-32: `%START_TIME(strftime)%`.
    #[test]
    fn conversions() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_721_988_041_036_007_089);
        for (format, expected) in [
            ("%Y-%m-%dT%H:%M:%S.%3fZ", "2024-07-26T10:00:41.036Z"),
            ("%s", "1721988041"),
            ("%s.%6f", "1721988041.036007"),
            ("%f", "036007089"),
            ("%1f", "0"),
            ("%S|%E3S", "41|41.036"),
            ("%F %T", "2024-07-26 10:00:41"),
            ("%D %R", "07/26/24 10:00"),
            ("%a %A %b %B %j %u", "Fri Friday Jul July 208 5"),
            ("%I:%M %p %Z%z", "10:00 AM UTC+0000"),
            ("%G-W%V", "2024-W30"),
            ("100%%", "100%"),
            ("", ""),
        ] {
            assert_eq!(TimeFormat::parse(format).expect(format).print(at), expected, "{format}");
        }
        for bad in ["%", "%Q", "%0f", "%3", "%E3"] {
            TimeFormat::parse(bad).expect_err(bad);
        }
    }
}
