//! Paths and authorities: normal form for matching (VS-11), rewriting (VS-26) and `Location`
//! (VS-24).

use regex::Regex;

use super::route::TextMatch;

/// How paths are brought into normal form before matching (`meshConfig.pathNormalization`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Normalization {
    /// As sent.
    Nothing,
    /// RFC 3986: `.` and `..`, needless percent-encoding, backslashes.
    #[default]
    Base,
    /// And `//` becomes `/`.
    MergeSlashes,
    /// And `%2F`, `%5C` are decoded first.
    DecodeAndMergeSlashes,
}

/// Splits off the query, `?` included.
pub(super) fn split_query(target: &str) -> (&str, &str) {
    let path = target.split('#').next().unwrap_or(target);
    match path.find('?') {
        Some(at) => path.split_at(at),
        None => (path, ""),
    }
}

/// `path` (without query) in normal form.
pub(super) fn normalize(path: &str, how: Normalization) -> String {
    if how == Normalization::Nothing || !path.starts_with('/') {
        return path.to_owned();
    }
    let decode_slashes = how == Normalization::DecodeAndMergeSlashes;
    let text = decode(path, decode_slashes).replace('\\', "/");
    let merge = matches!(how, Normalization::MergeSlashes | Normalization::DecodeAndMergeSlashes);
    let mut out: Vec<&str> = Vec::new();
    let segments: Vec<&str> = text.split('/').skip(1).collect();
    let last = segments.len().saturating_sub(1);
    for (index, segment) in segments.iter().enumerate() {
        match *segment {
            "." | ".." => {
                if *segment == ".." {
                    out.pop();
                }
                // "/a/.." and "/a/." name directories.
                if index == last {
                    out.push("");
                }
            }
            "" if merge && index != last => {}
            other => out.push(other),
        }
    }
    format!("/{}", out.join("/"))
}

/// Decodes what needs no encoding: unreserved characters, and slashes where they are asked for.
fn decode(path: &str, slashes: bool) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let byte = tail.get(1..3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte {
            Some(b) if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => out.push(char::from(b)),
            Some(b'/' | b'\\') if slashes => out.push('/'),
            Some(_) => out.push_str(&tail[..3]),
            None => {
                out.push('%');
                rest = &tail[1..];
                continue;
            }
        }
        rest = &tail[3..];
    }
    out + rest
}

/// A rule's `uri` condition.
#[derive(Debug, Clone)]
pub(crate) struct UriMatch {
    pub(crate) text: TextMatch,
    /// `ignoreUriCase`; not for patterns.
    pub(crate) ignore_case: bool,
}

impl UriMatch {
    /// Whether a normal path meets it.
    pub(super) fn matches(&self, path: &str) -> bool {
        match &self.text {
            TextMatch::Exact(exact) if self.ignore_case => path.eq_ignore_ascii_case(exact),
            TextMatch::Prefix(prefix) if self.ignore_case => {
                path.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            }
            other => other.matches(path),
        }
    }

    /// How much of a matched path a prefix rewrite replaces (VS-26).
    fn replaced(&self, path: &str) -> usize {
        match &self.text {
            TextMatch::Prefix(prefix) => prefix.len().min(path.len()),
            TextMatch::Exact(_) | TextMatch::Regex(_) => path.len(),
        }
    }
}

/// `path` with its matched prefix (without a condition: the leading `/`) replaced.
pub(super) fn replace_prefix(path: &str, matched: Option<&UriMatch>, with: &str) -> String {
    let replaced = matched.map_or(usize::from(path.starts_with('/')), |uri| uri.replaced(path));
    format!("{with}{}", path.get(replaced..).unwrap_or_default())
}

/// `uriRegexRewrite`.
#[derive(Debug, Clone)]
pub(crate) struct RegexRewrite {
    pub(crate) pattern: Regex,
    /// RE2 substitution: `\1` to `\9` are groups, `\0` the match, `\\` a backslash.
    pub(crate) substitution: String,
}

impl RegexRewrite {
    pub(super) fn apply(&self, path: &str) -> String {
        let expand = |found: &regex::Captures<'_>| {
            let mut out = String::new();
            let mut chars = self.substitution.chars();
            while let Some(c) = chars.next() {
                let group = |digit: char| digit.to_digit(10).map(|n| n as usize);
                match (c, c == '\\') {
                    (_, true) => match chars.next() {
                        Some(next) => match group(next) {
                            Some(n) => out.push_str(found.get(n).map_or("", |m| m.as_str())),
                            None => out.push(next),
                        },
                        None => out.push('\\'),
                    },
                    (plain, false) => out.push(plain),
                }
            }
            out
        };
        self.pattern.replace_all(path, expand).into_owned()
    }
}

/// `redirect` (VS-24).
#[derive(Debug, Clone, Default)]
pub(crate) struct Redirect {
    pub(crate) status: u16,
    pub(crate) uri: Option<String>,
    pub(crate) prefix: Option<String>,
    pub(crate) authority: Option<String>,
    /// `port`, or the dialled one where `derivePort` says so.
    pub(crate) port: Option<u16>,
    pub(crate) scheme: Option<String>,
}

impl Redirect {
    /// The new place of a plaintext request.
    pub(super) fn location(
        &self,
        host: &str,
        path: &str,
        query: &str,
        matched: Option<&UriMatch>,
    ) -> String {
        let scheme = self.scheme.as_deref().unwrap_or("http");
        let host = match &self.authority {
            Some(authority) => authority.as_str(),
            None => {
                let (name, port) = split_port(host);
                let leaves_default = scheme != "http" && port == Some("80");
                if self.port.is_some() || leaves_default { name } else { host }
            }
        };
        let default = if scheme == "https" { 443 } else { 80 };
        let port = self.port.filter(|port| *port != default);
        let port = port.map_or(String::new(), |port| format!(":{port}"));
        let target = match (&self.uri, &self.prefix) {
            (Some(uri), _) if uri.contains('?') => uri.clone(),
            (Some(uri), _) => format!("{uri}{query}"),
            (None, Some(prefix)) => format!("{}{query}", replace_prefix(path, matched, prefix)),
            (None, None) => format!("{path}{query}"),
        };
        format!("{scheme}://{host}{port}{target}")
    }
}

/// Host and port of an authority as sent.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vs_11_normal_paths() {
        use Normalization::{Base, DecodeAndMergeSlashes, MergeSlashes, Nothing};
        for (path, how, expected) in [
            ("/a/../b", Base, "/b"),
            ("/a/./b", Base, "/a/b"),
            ("/../../x", Base, "/x"),
            ("/a/%2e%2E/b", Base, "/b"),
            ("/a//b", Base, "/a//b"),
            ("/%41%2f", Base, "/A%2f"),
            ("/a\\..\\b", Base, "/b"),
            ("/a/..", Base, "/"),
            ("/a/b/.", Base, "/a/b/"),
            ("/a//b/", MergeSlashes, "/a/b/"),
            ("/a%2f%2Fb", DecodeAndMergeSlashes, "/a/b"),
            ("/a/../b", Nothing, "/a/../b"),
            ("/%", Base, "/%"),
            ("/%zé%4", Base, "/%zé%4"),
            ("*", Base, "*"),
        ] {
            assert_eq!(normalize(path, how), expected, "{path} {how:?}");
        }
    }

    #[test]
    fn vs_24_locations() {
        let redirect = Redirect::default;
        for (redirect, host, path, query, expected) in [
            (redirect(), "a.com", "/x", "?q", "http://a.com/x?q"),
            (
                Redirect { uri: Some("/n".into()), ..redirect() },
                "a.com:8080",
                "/x",
                "?q",
                "http://a.com:8080/n?q",
            ),
            (
                Redirect { uri: Some("/n?z".into()), ..redirect() },
                "a.com",
                "/x",
                "?q",
                "http://a.com/n?z",
            ),
            (
                Redirect { scheme: Some("https".into()), ..redirect() },
                "a.com:80",
                "/",
                "",
                "https://a.com/",
            ),
            (
                Redirect { scheme: Some("https".into()), port: Some(443), ..redirect() },
                "a.com:80",
                "/",
                "",
                "https://a.com/",
            ),
            (
                Redirect { port: Some(8443), ..redirect() },
                "a.com:80",
                "/",
                "",
                "http://a.com:8443/",
            ),
            (
                Redirect { authority: Some("b.com".into()), ..redirect() },
                "a.com:80",
                "/",
                "",
                "http://b.com/",
            ),
            (
                Redirect { prefix: Some("/new".into()), ..redirect() },
                "[::1]:80",
                "/x",
                "",
                "http://[::1]:80/newx",
            ),
        ] {
            assert_eq!(redirect.location(host, path, query, None), expected);
        }
    }

    #[test]
    fn vs_26_prefixes_and_patterns() {
        let uri = |text| UriMatch { text, ignore_case: false };
        let prefix = uri(TextMatch::Prefix("/old".into()));
        assert_eq!(replace_prefix("/old/x", Some(&prefix), "/new"), "/new/x");
        let exact = uri(TextMatch::Exact("/old".into()));
        assert_eq!(replace_prefix("/old", Some(&exact), "/new"), "/new");
        assert_eq!(replace_prefix("/a", None, "/new/"), "/new/a");
        let rewrite = RegexRewrite {
            pattern: Regex::new("/v([0-9])/(.*)").expect("a pattern"),
            substitution: r"/\2/\1\\".into(),
        };
        assert_eq!(rewrite.apply("/v2/x"), r"/x/2\");
    }
}
