//! Runs many seeds: `sim COUNT FIRST`. Prints what they did, and the first that failed; with
//! `SIM_ALL` set, one line for each that failed.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let (count, first) = match (numbers.next(), numbers.next()) {
        (None, _) => (200, 0),
        (Some(Ok(count)), None) => (count, 0),
        (Some(Ok(count)), Some(Ok(first))) => (count, first),
        _ => {
            eprintln!("usage: sim COUNT FIRST_SEED");
            return ExitCode::FAILURE;
        }
    };
    let all = std::env::var_os("SIM_ALL").is_some();
    let mut sum = mainspring_sim::Counts::default();
    let mut failed = 0u64;
    for seed in first..first + count {
        let report = mainspring_sim::run(seed);
        sum.add(report.counts);
        if report.violations.is_empty() {
            continue;
        }
        failed += 1;
        if all {
            println!("seed {seed}: {}", report.violations[0]);
        } else {
            print!("{report}");
            break;
        }
    }
    println!("{count} seeds from {first}, {failed} failed: {sum:?}");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
