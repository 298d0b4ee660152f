//! `interceptor cni`: environment and standard streams around the plugin.

use std::io::{Read as _, Write as _};
use std::{env, io};

use crate::cli::Exit;
use crate::cni::{Machine, Outcome, Records, Settings, act};

/// The longest configuration that is read, in bytes.
const MOST_INPUT: u64 = 4 << 20;

pub(super) fn run() -> Exit {
    match read().and_then(|input| print(&answer(&input)?)) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("interceptor-cni: {error}");
            Exit::Failure
        }
    }
}

fn read() -> io::Result<Vec<u8>> {
    let mut input = Vec::new();
    io::stdin().lock().take(MOST_INPUT).read_to_end(&mut input)?;
    Ok(input)
}

fn answer(input: &[u8]) -> io::Result<Outcome> {
    let boot = Records::boot()?;
    let place =
        |settings: &Settings| (Machine::of(settings), Records::of(&settings.instance, boot));
    Ok(act(|name| env::var(name).ok(), input, place))
}

fn print(outcome: &Outcome) -> io::Result<Exit> {
    for note in &outcome.notes {
        eprintln!("interceptor-cni: {note}");
    }
    if let Some(said) = &outcome.said {
        let mut out = io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, said)?;
        writeln!(out)?;
    }
    Ok(if outcome.done { Exit::Success } else { Exit::Failure })
}
