//! Access-log lines: taken apart by field, and compared with a shape of the specification.
//!
//! A shape is written like a line without its time stamp, with `…` for what varies: alone it
//! stands for any value, inside a word for any part of it (`203.0.113.10:…`), `…+` for a number
//! above zero, and `3000‥4000` for one of 3000 to 3999.

use std::fmt;

/// The fields of the default text format, in order (LOG-3).
pub const FIELDS: [&str; 24] = [
    "START_TIME",
    "METHOD",
    "PATH",
    "PROTOCOL",
    "RESPONSE_CODE",
    "RESPONSE_FLAGS",
    "RESPONSE_CODE_DETAILS",
    "CONNECTION_TERMINATION_DETAILS",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "DURATION",
    "X-ENVOY-UPSTREAM-SERVICE-TIME",
    "X-FORWARDED-FOR",
    "USER-AGENT",
    "X-REQUEST-ID",
    "AUTHORITY",
    "UPSTREAM_HOST",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "REQUESTED_SERVER_NAME",
    "ROUTE_NAME",
];

/// Which tokens of a line stand in quotes, counted from 0 after the time stamp (LOG-1).
const QUOTED: [usize; 7] = [0, 5, 10, 11, 12, 13, 14];
/// Tokens of a line after the time stamp; the first holds three fields.
const TOKENS: usize = 21;
/// What varies in a shape.
const ANY: char = '…';
/// A number above zero in a shape.
const POSITIVE: &str = "…+";
/// Between the least number that a shape takes and the first that is too large.
pub const RANGE: char = '‥';

/// One line, field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    fields: Vec<String>,
}

impl Line {
    /// Takes a line apart and checks what holds for every line: the number of fields, which ones
    /// are quoted, the form of times, numbers and addresses.
    ///
    /// # Errors
    /// With the first thing that is not in the format.
    pub fn parse(line: &str) -> Result<Self, String> {
        let rest = line.strip_prefix('[').ok_or("a line starts with `[`")?;
        let (time, rest) = rest.split_once("] ").ok_or("no `] ` after the time")?;
        let mut fields = vec![time.to_owned()];
        fields.extend(split(rest)?);
        let line = Self { fields };
        line.check_forms()?;
        Ok(line)
    }

    /// The value of a field by its name in [`FIELDS`].
    ///
    /// # Panics
    /// When there is no such field.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        let index = FIELDS.iter().position(|field| *field == name).expect("a field of the format");
        &self.fields[index]
    }

    /// How many connections the line stands for: more than one where refusals were folded.
    #[must_use]
    pub fn stands_for(&self) -> u64 {
        let why = self.field("CONNECTION_TERMINATION_DETAILS");
        let times = why.strip_suffix("_times").and_then(|why| why.rsplit_once('_'));
        times.and_then(|(_, times)| times.parse().ok()).unwrap_or(1)
    }

    /// Compares with a shape; all differences, or none.
    ///
    /// # Errors
    /// With one [`Difference`] for every field that isn't as the shape says.
    ///
    /// # Panics
    /// When the shape itself isn't written in the format.
    pub fn expect(&self, shape: &str) -> Result<(), Vec<Difference>> {
        let shape = split(shape).unwrap_or_else(|error| panic!("the shape {shape}: {error}"));
        let differences: Vec<_> = FIELDS[1..]
            .iter()
            .zip(shape)
            .zip(&self.fields[1..])
            .filter(|((_, expected), found)| !fits(expected, found))
            .map(|((field, expected), found)| Difference { field, expected, found: found.clone() })
            .collect();
        if differences.is_empty() { Ok(()) } else { Err(differences) }
    }

    fn check_forms(&self) -> Result<(), String> {
        let mask: String =
            self.fields[0].chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        if mask != "9999-99-99T99:99:99.999Z" {
            return Err(format!("START_TIME is `{}`", self.fields[0]));
        }
        for name in ["RESPONSE_CODE", "BYTES_RECEIVED", "BYTES_SENT", "DURATION"] {
            let value = self.field(name);
            value.parse::<u64>().map_err(|_| format!("{name} is `{value}`, no number"))?;
        }
        for name in ["DOWNSTREAM_LOCAL_ADDRESS", "DOWNSTREAM_REMOTE_ADDRESS"] {
            let value = self.field(name);
            value
                .parse::<std::net::SocketAddr>()
                .map_err(|_| format!("{name} is `{value}`, no address and port"))?;
        }
        for name in ["UPSTREAM_HOST", "UPSTREAM_LOCAL_ADDRESS"] {
            let value = self.field(name);
            if value != "-" && value.parse::<std::net::SocketAddr>().is_err() {
                return Err(format!("{name} is `{value}`, neither `-` nor an address and port"));
            }
        }
        Ok(())
    }
}

/// A field that isn't as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name in [`FIELDS`].
    pub field: &'static str,
    /// What the shape says.
    pub expected: String,
    /// What the line says.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected `{}`, found `{}`", self.field, self.expected, self.found)
    }
}

/// Finds for every shape one line of its own. The order of lines is the order in which flows
/// ended, which nobody promised.
///
/// # Errors
/// With a text that names each shape without a line and its nearest line, and each line without
/// a shape.
pub fn expect_lines(lines: &[String], shapes: &[&str]) -> Result<(), String> {
    let mut problems = Vec::new();
    let mut left: Vec<Line> = Vec::new();
    for line in lines {
        match Line::parse(line) {
            Ok(parsed) => left.push(parsed),
            Err(error) => problems.push(format!("not in the format ({error}): {line}")),
        }
    }
    let mut missing = Vec::new();
    for shape in shapes {
        match left.iter().position(|line| line.expect(shape).is_ok()) {
            Some(index) => drop(left.remove(index)),
            None => missing.push(*shape),
        }
    }
    for shape in missing {
        let differences = |line: &Line| line.expect(shape).err().unwrap_or_default();
        let nearest = (0..left.len()).min_by_key(|&index| differences(&left[index]).len());
        match nearest.map(|index| left.remove(index)) {
            None => problems.push(format!("no line for {shape}")),
            Some(line) => problems.extend(differences(&line).iter().map(ToString::to_string)),
        }
    }
    for line in left {
        problems.push(format!("a line that nobody expected: {}", line.fields.join(" ")));
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

/// Splits a line without its time stamp into the fields 2 to 24.
fn split(line: &str) -> Result<Vec<String>, String> {
    let mut rest = line;
    let mut fields = Vec::with_capacity(FIELDS.len() - 1);
    for token in 0..TOKENS {
        if token > 0 {
            rest = rest.strip_prefix(' ').ok_or_else(|| format!("only {token} parts"))?;
        }
        let value;
        if QUOTED.contains(&token) {
            let open = rest.strip_prefix('"').ok_or_else(|| format!("no quote before `{rest}`"))?;
            // A backslash takes the character after it along.
            let mut escaped = false;
            let end = open.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let end = end.ok_or("a quote that doesn't end")?;
            (value, rest) = (&open[..end], &open[end + 1..]);
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            (value, rest) = rest.split_at(end);
        }
        if value.is_empty() {
            return Err(format!("part {} is empty", token + 1));
        }
        if token == 0 {
            // A path has no blanks; a method and a protocol neither.
            let parts: Vec<_> = value.split(' ').collect();
            if parts.len() != 3 {
                return Err(format!("`{value}` is not METHOD PATH PROTOCOL"));
            }
            fields.extend(parts.into_iter().map(str::to_owned));
        } else {
            fields.push(value.to_owned());
        }
    }
    if rest.is_empty() { Ok(fields) } else { Err(format!("more than 24 fields: `{rest}`")) }
}

/// Whether a value is what a shape's field says.
fn fits(expected: &str, found: &str) -> bool {
    if expected == POSITIVE {
        return found.parse::<u64>().is_ok_and(|number| number > 0);
    }
    if let Some((least, end)) = expected.split_once(RANGE) {
        let bounds = least.parse::<u64>().ok().zip(end.parse().ok());
        let (least, end) = bounds.unwrap_or_else(|| panic!("the range {expected}"));
        return found.parse().is_ok_and(|number| (least..end).contains(&number));
    }
    let Some((head, mut tail)) = expected.split_once(ANY) else { return expected == found };
    let Some(mut rest) = found.strip_prefix(head) else { return false };
    while let Some((middle, after)) = tail.split_once(ANY) {
        let Some(at) = rest.find(middle) else { return false };
        rest = &rest[at + middle.len()..];
        tail = after;
    }
    rest.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LOG-45, from the seed document.
    const TLS: &str = r#"[2024-11-04T02:55:43.908Z] "- - -" 0 - - - "-" 892 5630 562 - "-" "-" "-" "-" "31.13.112.9:443" outbound|443||www.google.com 10.1.3.73:42256 31.13.112.9:443 10.1.3.73:42240 www.google.com -"#;
    /// LOG-44, from the seed document.
    const HTTP: &str = r#"[2024-11-03T15:30:47.911Z] "GET /headers HTTP/1.1" 200 - via_upstream - "-" 0 980 707 706 "-" "curl/8.10.1" "fe4df2bc-cf84-990c-a870-8e68b1380541" "httpbin.org" "52.6.108.150:80" outbound|80||httpbin.org 10.1.3.61:47086 52.6.108.150:80 10.1.3.61:47084 - default"#;
    const TLS_SHAPE: &str = r#""- - -" 0 - - - "-" …+ …+ … - "-" "-" "-" "-" "31.13.112.9:443" outbound|443||www.google.com 10.1.3.73:… …:443 …:… www.google.com -"#;

    #[test]
    fn the_seeds_lines_have_their_fields() {
        let line = Line::parse(HTTP).expect("a line");
        let expected = [
            ("METHOD", "GET"),
            ("PATH", "/headers"),
            ("RESPONSE_CODE", "200"),
            ("BYTES_SENT", "980"),
            ("USER-AGENT", "curl/8.10.1"),
            ("UPSTREAM_CLUSTER_RAW", "outbound|80||httpbin.org"),
            ("REQUESTED_SERVER_NAME", "-"),
            ("ROUTE_NAME", "default"),
        ];
        for (field, value) in expected {
            assert_eq!(line.field(field), value, "{field}");
        }
    }

    #[test]
    fn an_escaped_quote_ends_no_field() {
        let line = TLS.replace("- - - \"-\" 892", r#"- - - "no \"name\" \\" 892"#);
        let line = Line::parse(&line).expect("a line");
        assert_eq!(line.field("UPSTREAM_TRANSPORT_FAILURE_REASON"), r#"no \"name\" \\"#);
        assert_eq!(line.field("BYTES_RECEIVED"), "892");
    }

    #[test]
    fn a_shape_names_every_field_that_differs() {
        let line = Line::parse(TLS).expect("a line");
        assert_eq!(line.expect(TLS_SHAPE), Ok(()));
        let wrong = TLS_SHAPE.replace("\"- - -\" 0 -", "\"- - -\" 0 UH").replace("www", "ftp");
        let differences = line.expect(&wrong).expect_err("differences");
        let fields: Vec<_> = differences.iter().map(|difference| difference.field).collect();
        assert_eq!(fields, ["RESPONSE_FLAGS", "UPSTREAM_CLUSTER_RAW", "REQUESTED_SERVER_NAME"],);
    }

    #[test]
    fn a_folded_line_stands_for_many() {
        let with = |why: &str| {
            let line = TLS.replace("- - - \"-\" 892", &format!("- - {why} \"-\" 892"));
            Line::parse(&line).expect("a line").stands_for()
        };
        assert_eq!(
            [with("-"), with("not_registered"), with("not_registered_17_times")],
            [1, 1, 17]
        );
    }

    #[test]
    fn what_is_not_in_the_format_is_refused() {
        let broken = [
            TLS.replace("[2024-", "[24-"),
            TLS.replace(" -", ""),
            TLS.replace("892", "many"),
            TLS.replace("10.1.3.73:42240", "somewhere"),
            format!("{TLS} more"),
            TLS.replace("\"- - -\"", "\"- -\""),
            String::new(),
        ];
        for line in broken {
            assert!(Line::parse(&line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_free_part_is_anything_and_the_rest_is_exact() {
        for (expected, found, fit) in [
            ("…", "-", true),
            ("-", "…", false),
            ("curl/…", "curl/8", true),
            ("curl/…", "wget/8", false),
            ("a…b…c", "a-b-c", true),
            ("a…b…c", "a-c-b", false),
            ("…+", "1", true),
            ("…+", "0", false),
            ("…+", "-", false),
            ("3000‥4000", "2999", false),
            ("3000‥4000", "3000", true),
            ("3000‥4000", "3999", true),
            ("3000‥4000", "4000", false),
            ("3000‥4000", "-", false),
        ] {
            assert_eq!(fits(expected, found), fit, "{expected} {found}");
        }
    }

    #[test]
    fn each_shape_takes_a_line_of_its_own() {
        let lines = [TLS.to_owned(), TLS.to_owned()];
        assert!(expect_lines(&lines, &[TLS_SHAPE, TLS_SHAPE]).is_ok());
        let one_too_many = expect_lines(&lines, &[TLS_SHAPE]).expect_err("a line too many");
        assert!(one_too_many.contains("nobody expected"), "{one_too_many}");
        let missing = expect_lines(&lines[..1], &[TLS_SHAPE, TLS_SHAPE]).expect_err("one missing");
        assert!(missing.contains("no line for"), "{missing}");
    }
}
