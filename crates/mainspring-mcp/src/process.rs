//! Starting one server process and making sure that its whole group ends.
//!
//! Invariant: the program itself runs only after the watchdog knows its process group. The child
//! is first a shell that waits for a line on its standard input and then becomes the program
//! (`exec`, so the process id stays). If we die before the line, the shell sees end of file and
//! leaves; if we die after it, the watchdog kills the group.

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

use crate::{config::StdioConfig, error::McpError, watchdog::Watchdog};

/// Waits for one line, byte by byte so that nothing after it is lost, then becomes the program.
const GATE: &str = r#"IFS= read -r _ && exec "$@""#;

/// Inherited variables: what programs need to find themselves, their user and their language.
///
/// # Source
///
/// The list of the official Python and TypeScript SDKs, with the locale and temporary folder.
const INHERITED: [&str; 10] =
    ["HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"];

/// How long the end of stderr is waited for once every process of the group is dead.
const STDERR_WAIT: Duration = Duration::from_millis(500);

/// A running server: its process, its pipes and the end of its stderr.
pub(crate) struct ServerProcess {
    child: Child,
    group: Group,
    stderr: StderrTail,
}

/// The two pipes of the protocol.
pub(crate) struct Pipes {
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
}

impl ServerProcess {
    /// Starts the server. Nothing has been said to it yet.
    pub(crate) async fn spawn(
        config: &StdioConfig,
        watchdog: &Arc<Watchdog>,
    ) -> Result<(Self, Pipes), McpError> {
        let environment = environment(config);
        check_command(config, environment.get(OsStr::new("PATH")))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", GATE, "sh", &config.command])
            .args(&config.args)
            .env_clear()
            .envs(environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some(cwd) = &config.cwd {
            command.current_dir(cwd);
        }
        let failed = |reason: String| start_failed(config, reason, None);
        let mut child =
            command.spawn().map_err(|error| failed(format!("the system says {error}")))?;
        let id = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .expect("a child that was not waited for has a positive process id");
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            unreachable!("all three streams were asked for");
        };
        let group = Group::register(id, watchdog)
            .map_err(|error| failed(format!("its watchdog cannot be reached: {error}")))?;
        stdin
            .write_all(b"\n")
            .await
            .map_err(|error| failed(format!("its standard input is closed: {error}")))?;
        let stderr = StderrTail::read(stderr, config.limits.stderr_bytes_max);
        Ok((Self { child, group, stderr }, Pipes { stdin, stdout }))
    }

    /// Waits until the server process itself has ended. Can be dropped and called again.
    pub(crate) async fn wait(&mut self) -> String {
        describe(self.child.wait().await)
    }

    /// Gives the server some time to leave, kills what is left of its group, and returns how it
    /// ended and the end of its stderr.
    pub(crate) async fn finish(mut self, grace: Duration) -> (String, String) {
        let status = match timeout(grace, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                self.group.kill();
                self.child.wait().await
            }
        };
        drop(self.group);
        // A process that left the group may still hold the pipe open.
        let _ = timeout(STDERR_WAIT, &mut self.stderr.task).await;
        (describe(status), self.stderr.text())
    }
}

/// A process group that the watchdog knows. Dropping it kills the group.
struct Group {
    id: Pid,
    watchdog: Arc<Watchdog>,
}

impl Group {
    fn register(id: Pid, watchdog: &Arc<Watchdog>) -> std::io::Result<Self> {
        watchdog.add(id.as_raw_nonzero().get())?;
        Ok(Self { id, watchdog: watchdog.clone() })
    }

    fn kill(&self) {
        // "No such process" is the wanted state.
        let _ = kill_process_group(self.id, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        self.watchdog.remove(self.id.as_raw_nonzero().get());
    }
}

fn start_failed(config: &StdioConfig, reason: String, cure: Option<String>) -> McpError {
    McpError::StartFailed {
        server: config.name.clone(),
        reason,
        may_work_later: cure.is_none(),
        cure,
        stderr: String::new(),
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("exit status unknown: {error}"),
    }
}

/// The few inherited variables, then the configured ones.
fn environment(config: &StdioConfig) -> BTreeMap<OsString, OsString> {
    env::vars_os()
        .filter(|(name, value)| {
            let known = name
                .to_str()
                .is_some_and(|name| INHERITED.contains(&name) || name.starts_with("LC_"));
            // A value of this form is a function that old shells would run.
            known && !value.as_encoded_bytes().starts_with(b"()")
        })
        .chain(config.env.iter().map(|(name, value)| (name.into(), value.into())))
        .collect()
}

/// Finds the usual mistakes before a process is made, because the shell would only say 127.
fn check_command(config: &StdioConfig, path: Option<&OsString>) -> Result<(), McpError> {
    let cure = |text: &str| Some(text.to_owned());
    if let Some(cwd) = config.cwd.as_ref().filter(|cwd| !cwd.is_dir()) {
        let reason = format!("its working folder {cwd:?} is not a folder");
        return Err(start_failed(config, reason, cure("give a folder that exists in cwd")));
    }
    let command = &config.command;
    if command.contains('/') {
        let file = config.cwd.clone().unwrap_or_default().join(command);
        if is_program(&file) {
            return Ok(());
        }
        let reason = format!("command {command:?} is not a file that can be executed");
        return Err(start_failed(
            config,
            reason,
            cure("check the path, or make the file executable"),
        ));
    }
    let Some(path) = path else { return Ok(()) };
    let relative_to = config.cwd.clone().unwrap_or_default();
    let found = !command.is_empty()
        && env::split_paths(path).any(|folder| is_program(&relative_to.join(folder).join(command)));
    if found {
        return Ok(());
    }
    let reason = format!("command {command:?} was not found in PATH");
    Err(start_failed(config, reason, cure("install it, or give its full path in command")))
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// The last bytes the server wrote to stderr, read in the background.
struct StderrTail {
    bytes: Arc<Mutex<Vec<u8>>>,
    bytes_max: usize,
    task: JoinHandle<()>,
}

impl StderrTail {
    fn read(mut stderr: ChildStderr, bytes_max: usize) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = bytes.clone();
        let task = tokio::spawn(async move {
            let mut chunk = vec![0; 8 << 10];
            while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&chunk[..count]);
                // Shortened at twice the size, so that copying stays in proportion to reading.
                if kept.len() > bytes_max.saturating_mul(2) {
                    let surplus = kept.len() - bytes_max;
                    kept.drain(..surplus);
                }
            }
        });
        Self { bytes, bytes_max, task }
    }

    fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let surplus = bytes.len().saturating_sub(self.bytes_max);
        String::from_utf8_lossy(&bytes[surplus..]).into_owned()
    }
}

impl Drop for StderrTail {
    fn drop(&mut self) {
        self.task.abort();
    }
}
