//! The benchmark's model server: OpenAI-compatible, no model, no latency but what is asked for.
//!
//! Owns the process: options, the listening line on stdout and the end of its life. Invariant: it
//! never outlives its starter, because it exits when stdin closes. One thread serves every
//! connection; a second one sleeps on stdin. Start reading in `server.rs`.

mod answer;
mod connection;
mod options;
mod request;
mod server;
mod trouble;

use std::io::{self, Write};
use std::process::{self, ExitCode};
use std::thread;

use options::{Asked, HELP};
use server::Server;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(Asked::Serve(options)) => options,
        Ok(Asked::Help) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("{message}\nhint: load-server --help lists the options");
            return ExitCode::from(2);
        }
    };
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load server stopped: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: options::Options) -> io::Result<()> {
    let mut server = Server::bind(options)?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening {}", server.address()?)?;
    stdout.flush()?;
    thread::Builder::new().name("stdin".to_owned()).spawn(exit_with_stdin)?;
    server.run()
}

/// A closed stdin, or one that cannot be read, means that the starter is gone.
fn exit_with_stdin() {
    let code = match io::copy(&mut io::stdin().lock(), &mut io::sink()) {
        Ok(_) => 0,
        Err(_) => 1,
    };
    process::exit(code);
}
