//! Many connections with given first bytes, made by `interceptor-test-client probe` inside the
//! workload, and what became of each: cases and outcomes as lines of text.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::product::Running;
use crate::world::{World, wait};

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Where to.
    pub to: SocketAddr,
    /// How the bytes are sent.
    pub how: How,
    /// What is sent first.
    pub bytes: Vec<u8>,
}

/// How a case's bytes are sent. Those with a number cut them in two there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// At once.
    Whole,
    /// One byte at a time.
    Bytes,
    /// In two sends.
    Split(usize),
    /// In two sends, two milliseconds apart.
    Pause(usize),
    /// From a non-blocking socket.
    NonBlocking(usize),
    /// In one writev of two parts.
    Writev(usize),
    /// In two sendfiles from one file.
    Sendfile(usize),
    /// By two sends of an io_uring.
    IoUring(usize),
    /// With the SYN (TCP Fast Open), the rest in a second send.
    FastOpen(usize),
    /// At once, and the socket is closed without waiting for anything.
    Leave,
}

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything came back; the service saw this port and was reached at this address.
    Echoed(u16, SocketAddr),
    /// connect was refused, with this error number.
    Refused(i32),
    /// The connection ended before everything came back: with an error number, or 0 for an end of
    /// the stream.
    Ended(i32),
    /// Neither came in [`PATIENCE`].
    Silent,
    /// Closed by the client itself.
    Left,
}

/// Time that a case may take between two bytes.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A case's outcome, and the client's own port; 0 where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The source port.
    pub source: u16,
    /// What became of it.
    pub outcome: Outcome,
}

impl Probed {
    /// Whether everything came back.
    #[must_use]
    pub fn passed(&self) -> bool {
        matches!(self.outcome, Outcome::Echoed(..))
    }

    /// Whether it did, from the workload's own socket: the service saw the client's own port.
    #[must_use]
    pub fn went_direct(&self) -> bool {
        matches!(self.outcome, Outcome::Echoed(seen, _) if seen == self.source)
    }
}

/// Runs the cases in the covered workload, `threads` at a time.
///
/// # Errors
/// When the client fails, or isn't done after `limit`.
pub fn probe(
    world: &World,
    running: &Running<'_>,
    client: &str,
    cases: &[Case],
    threads: usize,
    limit: Duration,
) -> Result<Vec<Probed>> {
    let lines: String = cases.iter().map(|case| format!("{case}\n")).collect();
    let input = world.file("cases", &lines)?;
    let threads = threads.to_string();
    let output = tempfile::NamedTempFile::new()?;
    let mut command = running.exec_command(&[client, "probe", &input, "--threads", &threads]);
    command.stdin(Stdio::null()).stdout(output.reopen()?);
    let mut child = world.spawn(&mut command)?;
    let Some(status) = wait(&mut child, limit)? else {
        child.kill()?;
        child.wait()?;
        bail!("{} cases were not done after {limit:?}", cases.len());
    };
    ensure!(status.success(), "the client ended with {status}");
    let said = fs::read_to_string(output.path())?;
    let probed: Vec<Probed> = said.lines().map(str::parse).collect::<Result<_>>()?;
    ensure!(probed.len() == cases.len(), "{} outcomes of {}", probed.len(), cases.len());
    Ok(probed)
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.to, self.how)?;
        self.bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Case {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split(' ');
        let mut word = || words.next().context("a case has three words");
        let (to, how, hex) = (word()?.parse()?, word()?.parse()?, word()?);
        let bytes = (0..hex.len()).step_by(2).map(|at| {
            let digits = hex.get(at..at + 2).context("two digits")?;
            Ok(u8::from_str_radix(digits, 16)?)
        });
        Ok(Self { to, how, bytes: bytes.collect::<Result<_>>()? })
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("whole"),
            Self::Bytes => f.write_str("bytes"),
            Self::Leave => f.write_str("leave"),
            Self::Split(at) => write!(f, "split:{at}"),
            Self::Pause(at) => write!(f, "pause:{at}"),
            Self::NonBlocking(at) => write!(f, "non-blocking:{at}"),
            Self::Writev(at) => write!(f, "writev:{at}"),
            Self::Sendfile(at) => write!(f, "sendfile:{at}"),
            Self::IoUring(at) => write!(f, "io-uring:{at}"),
            Self::FastOpen(at) => write!(f, "fast-open:{at}"),
        }
    }
}

impl FromStr for How {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (word, at) = text.split_once(':').unwrap_or((text, "0"));
        let at = at.parse()?;
        Ok(match word {
            "whole" => Self::Whole,
            "bytes" => Self::Bytes,
            "leave" => Self::Leave,
            "split" => Self::Split(at),
            "pause" => Self::Pause(at),
            "non-blocking" => Self::NonBlocking(at),
            "writev" => Self::Writev(at),
            "sendfile" => Self::Sendfile(at),
            "io-uring" => Self::IoUring(at),
            "fast-open" => Self::FastOpen(at),
            other => bail!("no way of sending: {other}"),
        })
    }
}

impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.source)?;
        match self.outcome {
            Outcome::Echoed(seen, at) => write!(f, "echoed {seen} {at}"),
            Outcome::Refused(errno) => write!(f, "refused {errno}"),
            Outcome::Ended(errno) => write!(f, "ended {errno}"),
            Outcome::Silent => f.write_str("silent"),
            Outcome::Left => f.write_str("left"),
        }
    }
}

impl FromStr for Probed {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let outcome = match words[1..] {
            ["echoed", seen, at] => Outcome::Echoed(seen.parse()?, at.parse()?),
            ["refused", errno] => Outcome::Refused(errno.parse()?),
            ["ended", errno] => Outcome::Ended(errno.parse()?),
            ["silent"] => Outcome::Silent,
            ["left"] => Outcome::Left,
            _ => bail!("no outcome: {line}"),
        };
        Ok(Self { source: words[0].parse()?, outcome })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_and_outcomes_are_read_as_written() {
        let to = "[2001:db8::1]:443".parse().expect("an address");
        let case = Case { to, how: How::IoUring(7), bytes: vec![22, 3, 1, 255] };
        assert_eq!(case.to_string().parse::<Case>().expect("a case"), case);
        for outcome in [Outcome::Echoed(5, to), Outcome::Ended(103), Outcome::Silent] {
            let probed = Probed { source: 40_000, outcome };
            assert_eq!(probed.to_string().parse::<Probed>().expect("an outcome"), probed);
        }
    }
}
