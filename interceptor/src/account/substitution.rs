//! Command operators outside of log lines: in the values of headers that rules set (VS-27, LOG-32).

use std::fmt::Write as _;

use http::HeaderMap;

use super::Record;
use super::format::{FormatError, Piece, pieces, want_pieces};
use super::values::Value;
use super::wanted::Wanted;

/// Text with operators between percent signs; `%%` is the sign itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Substitution(Vec<Piece>);

impl Substitution {
    /// Reads `text`.
    ///
    /// # Errors
    /// An operator that is unknown or written wrongly, with its place.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        Ok(Self(pieces(text)?))
    }

    /// The text as things are now: `record` so far, the request's headers and, if it came as far,
    /// the response's. What is missing is `-`; nothing is escaped.
    pub fn value(
        &self,
        record: &Record,
        request: &HeaderMap,
        response: Option<&HeaderMap>,
    ) -> String {
        let mut wanted = Wanted::default();
        want_pieces(&self.0, &mut wanted);
        let mut record = record.clone();
        record.more.request_headers = wanted.request.pick(request);
        record.more.response_headers =
            response.map(|headers| wanted.response.pick(headers)).unwrap_or_default();
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Operator(operator) => match operator.value(&record) {
                    Value::Missing => text.push('-'),
                    // Writing to a String cannot fail.
                    Value::Number(number) => _ = write!(text, "{number}"),
                    Value::Text(value) => text.push_str(&value),
                },
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::account::HttpFields;

    #[test]
    fn log_32_operators_in_header_values() {
        let at = |text: &str| text.parse().expect("an address");
        let mut record = Record::new(SystemTime::UNIX_EPOCH, at("192.0.2.1:80"), at("10.0.0.1:7"));
        record.http = Some(HttpFields { method: "GET".into(), ..HttpFields::default() });
        let headers = |list: &[(&'static str, &'static str)]| {
            list.iter()
                .map(|(name, value)| {
                    (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
                })
                .collect::<HeaderMap>()
        };
        let (request, response) = (headers(&[("x-a", "a \"b\"")]), headers(&[("x-r", "r")]));
        for (text, expected) in [
            ("plain", "plain"),
            ("100%%", "100%"),
            ("<%REQ(X-A)%>", "<a \"b\">"),
            ("%REQ(x-none?x-a):1%", "a"),
            ("%REQ(x-none)%", "-"),
            ("%REQ(:METHOD)% %DOWNSTREAM_REMOTE_ADDRESS%", "GET 10.0.0.1:7"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.1"),
            ("%DOWNSTREAM_LOCAL_PORT% %RESP(x-r)%", "80 r"),
        ] {
            let value = Substitution::parse(text).expect(text);
            assert_eq!(value.value(&record, &request, Some(&response)), expected, "{text}");
        }
        let early = Substitution::parse("%RESP(x-r)%").expect("good");
        assert_eq!(early.value(&record, &request, None), "-");
        for bad in ["50%", "%NOPE%", "%REQ(x%", "%oijasodifj"] {
            assert!(Substitution::parse(bad).is_err(), "{bad}");
        }
    }
}
