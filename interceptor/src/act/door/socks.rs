//! SOCKS 5 (RFC 1928) with user and password (RFC 1929): one CONNECT. Names go to the proxy as names.

use std::io;
use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::login::Pair;
use crate::decide::Place;
use crate::decide::door::Target;

/// Why a SOCKS proxy gave no connection.
#[derive(Debug, thiserror::Error)]
pub enum NoSocks {
    /// It said no.
    #[error("the proxy answered {code} ({meaning})", meaning = meaning(*.code))]
    Answered {
        /// The reply's code.
        code: u8,
    },
    /// It wants to be logged in to in another way.
    #[error("the proxy accepts none of our ways to log in")]
    NoMethod,
    /// It does not like our credentials.
    #[error("the proxy refused user and password")]
    LoginRefused,
    /// User or password has more than 255 bytes.
    #[error("user and password must have 1 to 255 bytes each for SOCKS")]
    LoginTooLong,
    /// It speaks something else.
    #[error("the proxy does not speak SOCKS 5")]
    Garbage,
    /// It hung up, before its answer or amid it.
    #[error("the proxy closed before it had answered")]
    Closed,
    /// The connection to it broke.
    #[error("the connection to the proxy broke: {0}")]
    Broken(io::Error),
}

impl NoSocks {
    /// Whether it is the proxy's word on what was asked for, or our own fault.
    pub(super) fn is_answer(&self) -> bool {
        !matches!(self, Self::Garbage | Self::Closed | Self::Broken(_))
    }
}

impl From<io::Error> for NoSocks {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Broken(error),
        }
    }
}

/// RFC 1928 section 6.
fn meaning(code: u8) -> &'static str {
    match code {
        1 => "general failure",
        2 => "not allowed by its rules",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "TTL expired",
        7 => "command not supported",
        8 => "address type not supported",
        _ => "unknown",
    }
}

const VERSION: u8 = 5;
const NO_LOGIN: u8 = 0;
const USER_PASSWORD: u8 = 2;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Asks the proxy at the other end of `stream` for `target`. Afterwards the stream's next byte is the
/// connection's first.
///
/// # Errors
/// [`NoSocks`].
pub(super) async fn connect<S>(
    stream: &mut S,
    (place, port): &Target,
    login: Option<&Pair>,
) -> Result<(), NoSocks>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let methods: &[u8] = match login {
        None => &[VERSION, 1, NO_LOGIN],
        Some(_) => &[VERSION, 2, NO_LOGIN, USER_PASSWORD],
    };
    stream.write_all(methods).await?;
    stream.flush().await?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await?;
    match (chosen, login) {
        ([VERSION, NO_LOGIN], _) => {}
        ([VERSION, USER_PASSWORD], Some(pair)) => log_in(stream, pair).await?,
        ([VERSION, _], _) => return Err(NoSocks::NoMethod),
        _ => return Err(NoSocks::Garbage),
    }
    let mut request = vec![VERSION, CONNECT, 0];
    match place {
        Place::Ip(IpAddr::V4(ip)) => {
            request.push(IPV4);
            request.extend(ip.octets());
        }
        Place::Ip(IpAddr::V6(ip)) => {
            request.push(IPV6);
            request.extend(ip.octets());
        }
        Place::Name(name) => {
            // A host name has 253 bytes at most.
            let name = name.as_str().as_bytes();
            request.extend([NAME, name.len() as u8]);
            request.extend(name);
        }
    }
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply[..2]).await?;
    match reply {
        [VERSION, 0, ..] => {}
        [VERSION, code, ..] => return Err(NoSocks::Answered { code }),
        _ => return Err(NoSocks::Garbage),
    }
    stream.read_exact(&mut reply[2..]).await?;
    // The address that it connects from, which nobody asks for.
    let length = match reply[3] {
        IPV4 => 4,
        IPV6 => 16,
        NAME => usize::from(stream.read_u8().await?),
        _ => return Err(NoSocks::Garbage),
    };
    let mut bound = [0; 255 + 2];
    stream.read_exact(&mut bound[..length + 2]).await?;
    Ok(())
}

async fn log_in<S>(stream: &mut S, pair: &Pair) -> Result<(), NoSocks>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = vec![1];
    for part in [&pair.user, &pair.password] {
        let length = u8::try_from(part.len()).ok().filter(|length| *length > 0);
        request.push(length.ok_or(NoSocks::LoginTooLong)?);
        request.extend(part);
    }
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await?;
    match answer {
        [1, 0] => Ok(()),
        [1, _] => Err(NoSocks::LoginRefused),
        _ => Err(NoSocks::Garbage),
    }
}
