//! The walkthrough: the tutorial's steps, played with the real product and real curl, and
//! judged: exit status, output, every field of the access log, and the packets at the far side.

mod page;
mod script;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use std::{env, thread};

use anyhow::{Context, Result, anyhow, bail};

use crate::capture::Capture;
use crate::gateway::{FIRST, Gateway, Passage};
use crate::log;
use crate::product::{Interceptor, Outcome};
use crate::world::{World, exit_code};

use page::{Page, Row};
use script::{Action, ENTRIES, LogPlace, REGISTRY_ONLY, Step, Try, script};

/// What was asked for on the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The product's binary.
    pub interceptor: PathBuf,
    /// Leave the world up afterwards and open a shell in the workload.
    pub keep: bool,
    /// Write colours.
    pub colour: bool,
}

/// Plays everything, page on standard output. Whether every expectation held.
///
/// # Errors
/// When the world can't be brought up, the product not be started, or on Ctrl-C; what failed an
/// expectation is no error but a ✗.
pub fn play(options: &Options) -> Result<bool> {
    let start = Instant::now();
    let interrupted = watch_signals()?;
    let interrupted = interrupted.as_ref();
    let mut page = Page::new(io::stdout().lock(), options.colour);
    page.opening()?;
    let world = World::new().context("bringing the small internet up")?;
    let capture = world.capture()?;

    let steps = script();
    let rows = thread::scope(|scope| {
        let slow = |step| scope.spawn(move || play_aside(options, step, interrupted));
        let aside: Vec<_> = steps.iter().map(|step| step.slow.then(|| slow(step))).collect();
        let mut rows = Vec::new();
        for (step, aside) in steps.iter().zip(aside) {
            if let Some(thread) = aside {
                let (text, more) = thread.join().map_err(|_| anyhow!("a step panicked"))??;
                page.insert(&text)?;
                rows.extend(more);
            } else {
                let (page, capture) = (&mut page, &capture);
                let mut stage = Stage { world: &world, capture, page, step, gateway: None };
                rows.extend(stage.play(&options.interceptor, interrupted)?);
            }
        }
        anyhow::Ok(rows)
    })?;
    page.table(&rows, start.elapsed())?;
    drop(page);
    if options.keep {
        open_shell(&world, &options.interceptor)?;
    }
    Ok(rows.iter().all(|row| row.holds))
}

/// Plays one step in a world of its own. What the page has to say about it, and the rows.
fn play_aside(
    options: &Options,
    step: &Step,
    interrupted: &AtomicBool,
) -> Result<(Vec<u8>, Vec<Row>)> {
    let world = World::new().context("bringing another small internet up")?;
    let passage = step.gateway.map(|_| Passage::between(&world)).transpose()?;
    let gateway = match (&passage, step.gateway) {
        (Some(passage), Some(flags)) => {
            let absolute = |flag: &&str| match repository().join(flag) {
                file if file.is_file() => file.to_string_lossy().into_owned(),
                _ => (*flag).to_owned(),
            };
            let flags: Vec<_> = flags.iter().map(absolute).collect();
            let flags: Vec<_> = flags.iter().map(String::as_str).collect();
            Some(passage.dialled_of(&options.interceptor, "gw-1.test", FIRST.ip(), &flags)?)
        }
        _ => None,
    };
    let capture = world.capture()?;
    let mut text = Vec::new();
    let mut page = Page::new(&mut text, options.colour);
    let gateway = gateway.as_ref();
    let mut stage = Stage { world: &world, capture: &capture, page: &mut page, step, gateway };
    let rows = stage.play(&options.interceptor, interrupted)?;
    Ok((text, rows))
}

/// One step on its way.
struct Stage<'a, W> {
    world: &'a World,
    capture: &'a Capture,
    page: &'a mut Page<W>,
    step: &'a Step,
    gateway: Option<&'a Gateway>,
}

impl<W: Write> Stage<'_, W> {
    fn play(&mut self, binary: &Path, interrupted: &AtomicBool) -> Result<Vec<Row>> {
        let product =
            || Interceptor::new(self.world, binary, &self.step.flags).directory(repository());
        let live = self.step.actions.iter().any(|action| matches!(action, Action::Verb(_)));
        let running = if live { Some(product().start()?) } else { None };
        let once = product();

        self.page.heading(self.step)?;
        let mut rows = Vec::new();
        for action in &self.step.actions {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            match action {
                Action::Verb(verb) => {
                    let words: Vec<_> = verb.split(' ').collect();
                    let running = running.as_ref().context("a verb without a daemon")?;
                    let said = running.verb(&words)?;
                    self.page.verb(verb, &format!("{}{}", said.stdout, said.stderr), said.code)?;
                    rows.push(Row {
                        chapter: self.step.chapter,
                        rule: "SEED-18",
                        command: verb,
                        holds: said.code == 0,
                    });
                }
                Action::Try(_) | Action::Through(_) => {
                    let (tried, through) = match action {
                        Action::Through(through) => (&through.tried, Some(through)),
                        Action::Try(tried) => (tried, None),
                        Action::Verb(_) => continue,
                    };
                    let theirs = self.gateway.map_or(0, |gateway| gateway.lines().len());
                    let before = self.arrivals(tried);
                    let command = ["bash", "-c", tried.command];
                    let outcome = match (&running, self.step.log) {
                        (Some(running), _) => running.exec(&command, tried.log.len())?,
                        (None, LogPlace::Apart) => once.run(&command)?,
                        (None, LogPlace::StandardOutput) => once.run_logging_itself(&command)?,
                    };
                    let after = self.arrivals(tried);
                    let arrived: Vec<_> = after.iter().zip(before).map(|(a, b)| a - b).collect();
                    let mut problems = judge(tried, &outcome, &arrived);
                    self.page.command(tried, &outcome, &arrived)?;
                    if let Some(gateway) = self.gateway {
                        let shapes = through.map_or(&[][..], |through| &through.gateway);
                        let lines = gateway.wait_for_lines(theirs, shapes.len());
                        self.page.gateway(&lines)?;
                        let shapes: Vec<_> = shapes.iter().map(String::as_str).collect();
                        if let Err(differences) = log::expect_lines(&lines, &shapes) {
                            problems.push(format!("at the gateway: {differences}"));
                        }
                    }
                    self.page.verdict(tried.expected, &problems)?;
                    rows.push(Row {
                        chapter: self.step.chapter,
                        rule: tried.rule,
                        command: tried.command,
                        holds: problems.is_empty(),
                    });
                }
            }
        }
        Ok(rows)
    }

    /// Connections let out so far to each of the places that matter.
    fn arrivals(&self, tried: &Try) -> Vec<usize> {
        tried.arrives.iter().map(|(place, _)| self.capture.let_out_to(*place)).collect()
    }
}

/// Everything that isn't as the script says. `arrived` counts connections to `tried.arrives`.
fn judge(tried: &Try, outcome: &Outcome, arrived: &[usize]) -> Vec<String> {
    let mut problems = Vec::new();
    let finished = &outcome.finished;
    if finished.code != tried.exit {
        problems.push(format!("exit status: expected {}, found {}", tried.exit, finished.code));
    }
    let output = format!("{}{}", finished.stdout, finished.stderr);
    let mut rest = output.as_str();
    for part in &tried.output {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => problems.push(format!("the output lacks `{part}`")),
        }
    }
    let shapes: Vec<_> = tried.log.iter().map(String::as_str).collect();
    if let Err(differences) = log::expect_lines(&outcome.log, &shapes) {
        problems.push(differences);
    }
    for ((place, expected), arrived) in tried.arrives.iter().zip(arrived) {
        match (expected, arrived) {
            (true, 0) => problems.push(format!("no connection arrived at {place}")),
            (false, 1..) => {
                problems.push(format!("{arrived} connections to {place} left the workload"));
            }
            _ => {}
        }
    }
    problems
}

/// A shell in the workload, with everything that the walkthrough listed allowed.
fn open_shell(world: &World, binary: &Path) -> Result<()> {
    let mut flags = REGISTRY_ONLY.to_vec();
    flags.extend(ENTRIES.iter().flat_map(|file| ["-f", file]));
    let shell = env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    println!("\nA shell in the workload, REGISTRY_ONLY with the four entries above. Try");
    println!("  curl -sSI https://www.google.com");
    println!("  curl -sS http://v4.example.com");
    println!("The access log appears on this terminal. `exit` takes everything down.\n");
    let product = Interceptor::new(world, binary, &flags).directory(repository());
    let mut shell = product.run_visibly(&[&shell]);
    let status = world.spawn(&mut shell)?.wait()?;
    println!("the shell ended with {}", exit_code(status));
    Ok(())
}

/// The repository's root, where `examples/` is.
fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Notes Ctrl-C and SIGTERM instead of dying of them, so that what is up is taken down.
fn watch_signals() -> Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};

    let flag = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _in_runtime = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let noted = Arc::clone(&flag);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        noted.store(true, Ordering::Relaxed);
    });
    Ok(flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Finished;

    #[test]
    fn every_file_of_the_script_exists_and_every_shape_is_in_the_format() {
        for step in script() {
            for flag in step.flags.iter().filter(|flag| flag.ends_with(".yaml")) {
                assert!(repository().join(flag).is_file(), "{flag}");
            }
            for action in &step.actions {
                let tried = match action {
                    Action::Try(tried) => tried,
                    Action::Through(through) => &through.tried,
                    Action::Verb(_) => continue,
                };
                // A line that fits nothing: what matters is that no shape makes it panic.
                let line = r#"[2026-01-02T03:04:05.678Z] "x x x" 0 x x x "x" 0 0 0 x "x" "x" "x" "x" "-" x - 192.0.2.1:1 192.0.2.1:1 x x"#;
                let line = log::Line::parse(line).expect("a line");
                assert!(tried.log.iter().all(|shape| line.expect(shape).is_err()));
            }
        }
    }

    #[test]
    fn the_judge_sees_every_kind_of_difference() {
        let steps = script();
        let refused = steps
            .iter()
            .flat_map(|step| &step.actions)
            .find_map(|action| match action {
                Action::Try(tried) if tried.exit == 35 => Some(tried),
                _ => None,
            })
            .expect("a refusal in the script");
        let line = r#"[2026-01-02T03:04:05.678Z] "- - -" 0 UH - not_registered "-" 0 0 3 - "-" "-" "-" "-" "-" BlackHoleCluster - 198.51.100.4:443 10.77.0.2:40000 www.google.com -"#;
        let right = Outcome {
            command: "curl".to_owned(),
            finished: Finished {
                code: 35,
                stdout: String::new(),
                stderr: "curl: (35) refused".to_owned(),
            },
            log: vec![line.to_owned()],
        };
        assert_eq!(judge(refused, &right, &[0]), Vec::<String>::new());

        let change = |change: fn(&mut Outcome)| {
            let mut outcome = right.clone();
            change(&mut outcome);
            judge(refused, &outcome, &[0])
        };
        assert!(change(|o| o.finished.code = 0)[0].contains("exit status"));
        assert!(change(|o| o.finished.stderr.clear())[0].contains("lacks"));
        assert!(change(|o| o.log.clear())[0].contains("no line"));
        assert!(change(|o| o.log[0] = o.log[0].replace("UH", "-"))[0].contains("RESPONSE_FLAGS"));
        assert!(judge(refused, &right, &[1])[0].contains("left the workload"));
    }
}
