//! Prints what two models cost together, beside the best single one of the same quality:
//! `cargo run --release -p mainspring-sim --example bill [SESSIONS]`.

use mainspring_sim::bill::{Bill, Fleet, MARKETS, best_single, play};

fn main() {
    let given = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let sessions = given.unwrap_or(300);
    println!("{sessions} sessions a line; US dollars, and the share of steps that are right");
    println!(
        "{:14} {:>6} {:>9} {:>17} {:>17} {:>17} {:>6} {:>9} {:>6}",
        "prices", "wrong", "decided", "small", "large", "both", "best", "both/best", "tried"
    );
    for market in MARKETS {
        for percent in [0, 5, 10, 20, 30, 40, 50, 60] {
            let fail = f64::from(percent) / 100.0;
            let [small, large, both] = [Fleet::Small, Fleet::Large, Fleet::Cascade]
                .map(|fleet| play(market, fleet, fail, sessions));
            let (name, best) = best_single(small, large, both);
            println!(
                "{:14} {percent:>4} % {:>9} {} {} {} {name:>6} {:>9.3} {:>6}",
                market.name,
                both.decided,
                shown(small),
                shown(large),
                shown(both),
                both.usd / best.usd,
                both.explored,
            );
        }
    }
}

fn shown(bill: Bill) -> String {
    format!("{:>8.2} ({:>4.1} %)", bill.usd, 100.0 * bill.quality())
}
