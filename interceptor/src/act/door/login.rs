//! User and password for a proxy: read when they are needed, kept nowhere, shown by nothing.

use std::io;
use std::path::{Path, PathBuf};

use http::HeaderValue;
use tokio::io::AsyncReadExt;

use crate::decide::door::Login;
use crate::policy::encode_base64;

/// No file of credentials is longer.
const FILE_MAX: u64 = 4096;

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The file cannot be read.
    #[error("credentialsFile {path}: {source}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("credentialsFile {path} does not hold user:password on one line", path = .0.display())]
    Unusable(PathBuf),
    /// There is no such Secret.
    #[error("there is no Secret {0:?} with username and password")]
    NoSecret(String),
}

/// A user and a password. There is no `Debug`.
pub(super) struct Pair {
    pub(super) user: Vec<u8>,
    pub(super) password: Vec<u8>,
}

impl Pair {
    /// As HTTP's basic authentication has it (RFC 7617).
    pub(super) fn basic(&self) -> HeaderValue {
        let pair = [self.user.as_slice(), b":", &self.password].concat();
        let mut value = HeaderValue::try_from(format!("Basic {}", encode_base64(&pair)))
            .expect("base64 is text");
        value.set_sensitive(true);
        value
    }
}

/// Reads the credentials as they are now.
///
/// # Errors
/// [`LoginError`]; then nothing is sent, least of all a request without them.
pub(super) async fn read(login: &Login) -> Result<Pair, LoginError> {
    match login {
        Login::Secret(name, found) => {
            let missing = || LoginError::NoSecret(name.clone());
            let found = found.as_ref().ok_or_else(missing)?;
            let pair = found.user.as_ref().zip(found.password.as_ref());
            let (user, password) = pair.ok_or_else(missing)?;
            Ok(Pair { user: user.to_vec(), password: password.to_vec() })
        }
        Login::File(path) => {
            let failed = |source| LoginError::File { path: path.clone(), source };
            let text = read_file(path).await.map_err(failed)?;
            parse(&text).ok_or_else(|| LoginError::Unusable(path.clone()))
        }
    }
}

async fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    tokio::fs::File::open(path).await?.take(FILE_MAX + 1).read_to_end(&mut text).await?;
    if text.len() as u64 > FILE_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// `user:password`, and at most a line's end behind it.
fn parse(text: &[u8]) -> Option<Pair> {
    let line = text.strip_suffix(b"\n").unwrap_or(text);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.iter().any(u8::is_ascii_control) {
        return None;
    }
    let colon = line.iter().position(|byte| *byte == b':').filter(|at| *at > 0)?;
    let (user, password) = (line[..colon].to_vec(), line[colon + 1..].to_vec());
    Some(Pair { user, password })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_may_hold() {
        for (text, expected) in [
            ("user:pass\n", Some(("user", "pass"))),
            ("user:pa:ss\r\n", Some(("user", "pa:ss"))),
            ("user:", Some(("user", ""))),
            (":pass", None),
            ("userpass\n", None),
            ("user:pass\nX: y\n", None),
            ("", None),
        ] {
            let pair = parse(text.as_bytes());
            let pair = pair.as_ref().map(|pair| (&*pair.user, &*pair.password));
            assert_eq!(pair, expected.map(|(u, p)| (u.as_bytes(), p.as_bytes())), "{text:?}");
        }
    }

    #[test]
    fn basic_is_rfc_7617_and_not_shown() {
        let pair = Pair { user: b"Aladdin".to_vec(), password: b"open sesame".to_vec() };
        let value = pair.basic();
        assert_eq!(value, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(format!("{value:?}"), "Sensitive");
    }
}
