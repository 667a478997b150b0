//! No server outlives us: the test kills a process that holds one, and looks at what is left.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use mainspring_mcp::McpBroker;

use crate::support::{alive, broker, config, gone, text};

/// Set in the process that is going to be killed.
const HOLDER: &str = "MAINSPRING_MCP_TEST_HOLDER";

/// This test runs itself a second time, as the process that is killed.
#[tokio::test]
async fn a_killed_client_leaves_no_server_and_no_grandchild() {
    if env::var_os(HOLDER).is_some() {
        return hold(&broker()).await;
    }
    kill_holder("processes::a_killed_client_leaves_no_server_and_no_grandchild").await;
}

/// The same, in a process whose watchdog somebody killed before.
#[tokio::test]
async fn a_killed_watchdog_is_replaced_before_the_next_server_starts() {
    if env::var_os(HOLDER).is_some() {
        let broker = broker();
        // The watchdog is the only child yet.
        let watchdog = fs::read_to_string("/proc/thread-self/children").unwrap();
        Command::new("kill").args(["-s", "KILL", watchdog.trim()]).status().unwrap();
        gone(watchdog.trim()).await;
        return hold(&broker).await;
    }
    kill_holder("processes::a_killed_watchdog_is_replaced_before_the_next_server_starts").await;
}

/// Runs the test of this name as a holder, kills it, and waits until its servers are gone.
async fn kill_holder(name: &str) {
    let mut holder = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(HOLDER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let pids = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("PIDS ").map(|(_, pids)| pids.to_owned()))
        .expect("the holder prints the process ids");
    let pids: Vec<&str> = pids.split(' ').collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| alive(pid)));
    holder.kill().unwrap();
    holder.wait().unwrap();
    for pid in pids {
        gone(pid).await;
    }
}

/// Starts a server with a child of its own, says who they are, and waits to be killed.
async fn hold(broker: &McpBroker) {
    let server = broker.server(config("parent.py"));
    println!("PIDS {}", text(&server, "pids").await);
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_server_that_dies_does_not_leave_its_children() {
    let server = broker().server(config("parent.py"));
    let pids = text(&server, "pids").await;
    let (parent, child) = pids.split_once(' ').unwrap();
    Command::new("kill").args(["-s", "KILL", parent]).status().unwrap();
    gone(parent).await;
    gone(child).await;
    assert_ne!(text(&server, "pids").await, pids);
}
