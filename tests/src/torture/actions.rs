//! What is done to the product. A new one is a function here and a row of [`ACTIONS`].

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::stage::Stage;
use crate::hellos::Random;
use crate::process::{self, Held};
use crate::tamper::{self, Filled};

/// One thing that is done. When it returns, what it did is undone, and from that moment on allowed
/// traffic has to be back soon; what it returns is what a report says of it. It fails where the product
/// did not do meanwhile what it should.
#[derive(Clone, Copy, Debug)]
pub struct Action {
    /// What a report calls it.
    pub name: &'static str,
    /// How it is done; by the random numbers, the same each time.
    pub act: fn(&mut Stage<'_>, &mut Random) -> Result<String>,
    /// How much longer than otherwise traffic may take to be back.
    pub more: Duration,
}

const fn action(
    name: &'static str,
    act: fn(&mut Stage<'_>, &mut Random) -> Result<String>,
) -> Action {
    Action { name, act, more: Duration::ZERO }
}

/// A question that nobody answers is given up after 4.5 s, and asked again after at most 5 s more.
const ASKED_AGAIN: Duration = Duration::from_secs(10);

/// All of them.
pub const ACTIONS: [Action; 14] = [
    action("kill", kill),
    action("kill and leave dead", leave_dead),
    action("stop and continue", stop),
    action("upgrade", upgrade),
    action("reload", reload),
    action("invalid reload", invalid_reload),
    action("resolver dies", resolver_dies),
    Action {
        name: "resolver dies, then the daemon",
        act: resolver_and_daemon_die,
        more: ASKED_AGAIN,
    },
    action("no descriptors", no_descriptors),
    action("no memory", no_memory),
    action("full disk", full_disk),
    action("full table", full_table),
    action("detached hook", detached_hook),
    action("crowd", crowd),
];

/// What breaks the product: no watchdog can see it before connections got out.
pub const BREAK_HOOKS: Action = action("break: hooks away unseen", hooks_away);

fn milliseconds(random: &mut Random, least: u64, more: usize) -> Duration {
    Duration::from_millis(least + random.below(more) as u64)
}

fn kill(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    // Also in the middle of its start.
    let times = 1 + random.below(3);
    let mut moments = Vec::new();
    for _ in 0..times {
        let alive = milliseconds(random, 0, 400);
        sleep(alive);
        stage.kill()?;
        stage.start_again()?;
        moments.push(format!("{}", alive.as_millis()));
    }
    Ok(format!("after {} ms", moments.join(", ")))
}

fn leave_dead(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let kinds = stage.without_daemon()?;
    stage.kill()?;
    stage.go_on(&kinds).context("without a daemon")?;
    let dead = milliseconds(random, 0, 3000);
    sleep(dead);
    stage.start_again()?;
    Ok(format!("{} kinds of traffic went on; {} ms", kinds.len(), dead.as_millis()))
}

fn stop(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let length = milliseconds(random, 100, 3000);
    let kinds = stage.without_daemon()?;
    tamper::unseen(&stage.running, || {
        sleep(length);
        stage.go_on(&kinds).context("while the daemon is stopped")
    })?;
    Ok(format!("{} kinds of traffic went on; {} ms", kinds.len(), length.as_millis()))
}

fn upgrade(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let times = 1 + random.below(2);
    let mut took = Vec::new();
    for _ in 0..times {
        let [in_place, drained] = stage.upgrade()?;
        took.push(format!("{} + {} ms", in_place.as_millis(), drained.as_millis()));
    }
    stage.kernel_goes_on().context("after an upgrade")?;
    Ok(format!("in place and drained after {}", took.join(", ")))
}

fn reload(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let times = 1 + random.below(4);
    let mut generation = stage.status_number("/generation")?;
    for _ in 0..times {
        stage.write_policy()?;
        generation = stage.until_more("/generation", generation)?;
    }
    Ok(format!("{times} times, to generation {generation}"))
}

fn invalid_reload(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let broken = [
        "kind: ServiceEntry\nspec: [",
        "apiVersion: networking.istio.io/v1\nkind: NoSuchKind\nmetadata: {name: x}\nspec: {}\n",
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}\nspec: {hots: [a]}\n",
        "\u{0}",
    ];
    let which = random.below(broken.len());
    let (generation, refused) =
        (stage.status_number("/generation")?, stage.status_number("/reloads/refused")?);
    stage.write_as_policy(broken[which])?;
    stage.until_more("/reloads/refused", refused).with_context(|| format!("text {which}"))?;
    let now = stage.status_number("/generation")?;
    ensure!(now == generation, "generation {now} after an invalid reload, {generation} before");
    stage.kernel_goes_on().context("after an invalid reload")?;
    stage.write_policy()?;
    stage.until_more("/generation", generation)?;
    Ok(format!("text {which} refused, generation {generation} stayed"))
}

fn resolver_dies(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    // Now and then for longer than its answers hold.
    let dead =
        if random.percent(15) { Duration::from_secs(40) } else { milliseconds(random, 500, 6000) };
    let zone = &stage.ground.world.zone;
    zone.set_silent(true);
    sleep(dead);
    let went_on = stage.inside.goes_on("203.0.113.61:7", super::stage::SOON);
    zone.set_silent(false);
    went_on.context("direct by address, without a resolver")?;
    Ok(format!("{} ms", dead.as_millis()))
}

fn resolver_and_daemon_die(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let dead = milliseconds(random, 100, 4000);
    stage.ground.world.zone.set_silent(true);
    let started = stage.kill().and_then(|()| stage.start_again());
    sleep(dead);
    stage.ground.world.zone.set_silent(false);
    started?;
    Ok(format!("{} ms without a resolver", dead.as_millis()))
}

fn no_descriptors(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let pid = stage.running.pid();
    let most = Held::by(pid)?.descriptors + random.below(6) as u64;
    let length = milliseconds(random, 300, 3000);
    let before = process::most_descriptors(pid)?;
    stage.limit("nofile", &most.to_string())?;
    sleep(length);
    let went_on = stage.kernel_goes_on();
    stage.limit("nofile", &before.to_string())?;
    went_on.context("while the daemon has no descriptors")?;
    Ok(format!("{most} of {before} for {} ms", length.as_millis()))
}

fn no_memory(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let data = process::status(stage.running.pid(), "VmData")? * 1024;
    let more = (1 + random.below(8) as u64) << 20;
    stage.limit("data", &(data + more).to_string())?;
    let crowd = stage.crowd("head", 400)?;
    sleep(milliseconds(random, 500, 1500));
    let went_on = stage.kernel_goes_on();
    drop(crowd);
    let end = match stage.running.ended()? {
        Some(code) => {
            stage.start_again()?;
            format!("it ended with {code} and was started again")
        }
        None => {
            stage.limit("data", "unlimited")?;
            "it lived on".to_owned()
        }
    };
    went_on.context("while the daemon has no memory")?;
    Ok(format!("{} MiB more: {end}", more >> 20))
}

fn full_disk(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let before = stage.status_number("/access_log_dropped")?;
    let filler = stage.fill_disk()?;
    sleep(milliseconds(random, 200, 1500));
    let lost = stage.until_more("/access_log_dropped", before)? - before;
    stage.kernel_goes_on().context("while the disk is full")?;
    stage.inside.goes_on("203.0.113.64:80/web.test", super::stage::SOON)?;
    drop(filler);
    Ok(format!("all traffic went on; {lost} lines lost, and counted"))
}

fn full_table(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let table = *random.pick(&["PENDING", "HANDOVERS", "PASSAGES"]);
    let filled = Filled::table(&stage.running, table)?;
    sleep(milliseconds(random, 200, 2000));
    stage.inside.goes_on("203.0.113.61:7", super::stage::SOON).context("direct by address")?;
    Ok(format!("{} entries in {table}", filled.entries()))
}

fn detached_hook(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let links = tamper::pins(&stage.running, "links")?;
    let mut pins: Vec<String> = fs::read_dir(&links)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    pins.sort();
    // Behind every hook stands the one that judges packets; behind that one, in this world, none.
    let hooks: Vec<_> = pins
        .iter()
        .filter_map(|pin| stage.own_hook(pin).transpose())
        .filter(|hook| !matches!(hook, Ok("egress")))
        .collect::<Result<_>>()?;
    ensure!(!hooks.is_empty(), "no links in {}", links.display());
    let hook = *random.pick(&hooks);
    let before = stage.status_number("/repairs/count")?;
    let link = tamper::link(&stage.running, hook, stage.cgroup())?;
    let how = if random.percent(50) {
        tamper::detach(&link)?;
        "detached"
    } else {
        fs::remove_file(&link)?;
        "unpinned"
    };
    stage.until_more("/repairs/count", before).with_context(|| hook.to_owned())?;
    Ok(format!("{hook} {how}, and put back"))
}

fn crowd(stage: &mut Stage<'_>, random: &mut Random) -> Result<String> {
    let manner = *random.pick(&["hello", "head", "idle", "reset"]);
    let count = 100 + random.below(900);
    let mut crowd = stage.crowd(manner, count)?;
    crowd.wait_for("connected")?;
    sleep(milliseconds(random, 200, 2000));
    stage.kernel_goes_on().with_context(|| format!("beside {count} of {manner}"))?;
    drop(crowd);
    Ok(format!("{count} of {manner}"))
}

fn hooks_away(stage: &mut Stage<'_>, _: &mut Random) -> Result<String> {
    tamper::unseen(&stage.running, || {
        for hook in ["connect4", "egress"] {
            tamper::detach(&tamper::link(&stage.running, hook, stage.cgroup())?)?;
        }
        sleep(Duration::from_millis(500));
        Ok(())
    })?;
    Ok("connect4 and egress, for half a second".into())
}
