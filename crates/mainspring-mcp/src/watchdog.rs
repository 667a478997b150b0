//! The process that kills the servers when this process is gone.
//!
//! Invariant: while a server runs, a watchdog knows its process group. The watchdog reads group
//! numbers from a pipe whose only write end is here and closed on exec; when that end disappears,
//! for whatever reason, SIGKILL included, the watchdog kills every group it knows and exits.
//! A server is behind a gate until it is registered, see `process`.

use std::{
    collections::BTreeSet,
    io::{self, PipeWriter, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

/// Reads `add GROUP` and `del GROUP`; at end of file kills what is left.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT
groups=' '
while read -r verb group; do
    case $verb in
        add) groups="$groups$group " ;;
        del)
            case $groups in
                *" $group "*) groups="${groups%%" $group "*} ${groups#*" $group "}" ;;
            esac ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
"#;

/// Handle to the watchdog of one broker.
pub(crate) struct Watchdog {
    state: Mutex<State>,
}

struct State {
    groups: BTreeSet<i32>,
    guard: Guard,
}

/// A running watchdog process. Dropping it makes the process kill what it knows.
struct Guard {
    pipe: Option<PipeWriter>,
    child: Option<Child>,
}

impl Watchdog {
    /// Starts the process.
    pub(crate) fn start() -> io::Result<Self> {
        let guard = Guard::start()?;
        Ok(Self { state: Mutex::new(State { groups: BTreeSet::new(), guard }) })
    }

    /// Registers a group; once this returns `Ok`, the group dies with this process.
    pub(crate) fn add(&self, group: i32) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.groups.insert(group);
        if state.guard.tell("add", group).is_ok() {
            return Ok(());
        }
        // Somebody killed the watchdog. A new one takes over all groups; the old one's pipe is
        // broken, so replacing it kills nothing.
        let mut fresh = Guard::start()?;
        for group in &state.groups {
            fresh.tell("add", *group)?;
        }
        state.guard = fresh;
        Ok(())
    }

    /// Forgets a group whose processes are gone.
    pub(crate) fn remove(&self, group: i32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.groups.remove(&group);
        // A broken pipe is repaired by the next `add`, and a dead watchdog remembers nothing.
        let _ = state.guard.tell("del", group);
    }
}

impl Guard {
    fn start() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let child = Command::new("/bin/sh")
            .arg("-c")
            .arg(SCRIPT)
            .env_clear()
            .current_dir("/")
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { pipe: Some(writer), child: Some(child) })
    }

    fn tell(&mut self, verb: &str, group: i32) -> io::Result<()> {
        // One short write to a pipe is atomic, and the reader does nothing but read.
        match &mut self.pipe {
            Some(pipe) => pipe.write_all(format!("{verb} {group}\n").as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pipe = None;
        if let Some(mut child) = self.child.take() {
            // Collects the exit status, so that no zombie stays; nobody waits for it.
            let _ = std::thread::Builder::new()
                .name("mcp-watchdog-reaper".into())
                .spawn(move || child.wait());
        }
    }
}
