//! The trace of a connection, which its lines on both sides share (W3C trace context).

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

/// What `traceparent` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// 32 digits of the trace.
    pub id: Arc<str>,
    /// 16 digits of the connection's part in it.
    span: Arc<str>,
}

impl Trace {
    /// A new one.
    pub fn new() -> Self {
        let id = Uuid::new_v4().simple().to_string();
        let span = Uuid::new_v4().simple().to_string();
        Self { id: id.into(), span: span[..16].into() }
    }

    /// Reads `00-TRACE-SPAN-FLAGS`; later versions may say more behind that.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let [version, id, span, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
        let hex = |text: &str, len| {
            let digit = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
            text.len() == len && text.bytes().all(digit)
        };
        let is_zero = |text: &str| text.bytes().all(|c| c == b'0');
        let sound = hex(version, 2) && hex(id, 32) && hex(span, 16) && hex(flags, 2);
        let ended = version != "00" || parts.next().is_none();
        let known = version != "ff" && ended && !is_zero(id) && !is_zero(span);
        (sound && known).then(|| Self { id: id.into(), span: span.into() })
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Trace {
    /// Sampled: there is a line of each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", self.id, self.span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_w3c_has_it() {
        let trace = Trace::new();
        assert_eq!(Trace::parse(&trace.to_string()), Some(trace));
        let example = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = Trace::parse(example).expect("the W3C's own");
        assert_eq!(&*read.id, "4bf92f3577b34da6a3ce929d0e0e4736");
        let none = "0".repeat(32);
        for wrong in [
            "",
            &format!("{example}-x"),
            &example.to_uppercase(),
            &example.replacen("00", "ff", 1),
            &format!("00-{none}-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(Trace::parse(wrong), None, "{wrong}");
        }
        assert!(Trace::parse(&format!("{}-more", example.replacen("00", "01", 1))).is_some());
    }
}
