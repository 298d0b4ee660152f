//! Clients that go on until they are told to end (`interceptor-test-client crowd` and `steady`), and what
//! they say then: words with counts, `200=17 ECONNRESET=3`.

use std::process::Child;

use anyhow::{Context, Result, ensure};

/// A client that goes on until its standard input ends. Dropping it kills it.
#[derive(Debug)]
pub struct Crowd {
    child: Child,
}

impl Crowd {
    /// Of a client whose input and output are pipes.
    #[must_use]
    pub fn of(child: Child) -> Self {
        Self { child }
    }

    /// Waits until all of a crowd are connected.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn wait_until_connected(&mut self) -> Result<()> {
        let mut word = [0; "connected\n".len()];
        let output = self.child.stdout.as_mut().context("its output")?;
        std::io::Read::read_exact(output, &mut word)?;
        ensure!(word == *b"connected\n", "{word:?}");
        Ok(())
    }

    /// Tells it to end; what it says then.
    ///
    /// # Errors
    /// When it fails.
    pub fn end(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let mut said = String::new();
        let output = self.child.stdout.as_mut().context("its output")?;
        std::io::Read::read_to_string(output, &mut said)?;
        ensure!(self.child.wait()?.success(), "{said}");
        Ok(said.lines().last().unwrap_or_default().to_owned())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number behind `WORD=` in what a client said; 0 where the word is not there.
#[must_use]
pub fn said(text: &str, word: &str) -> u64 {
    let words = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    words.filter(|(have, _)| *have == word).filter_map(|(_, n)| n.parse::<u64>().ok()).sum()
}

/// How many of a crowd were reset before they had done anything.
#[must_use]
pub fn reset_at_once(text: &str) -> u64 {
    said(text, "ECONNRESET") + said(text, "connect-ECONNRESET") + said(text, "ended-after-0s")
}
