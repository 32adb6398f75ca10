//! Any bytes in either direction, in two parts: no panic, every byte is told, and the same however they come.
#![no_main]

use gatespan::recording::mask::{Run, Shown};
use gatespan::recording::{Direction, Mask};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|parts: (bool, &[u8], &[u8])| {
    let direction = if parts.0 { Direction::ToApplication } else { Direction::ToWebServer };
    let whole = [parts.1, parts.2].concat();
    assert_eq!(masked(direction, &[parts.1, parts.2]), masked(direction, &[&whole]));
});

/// Whether each byte is masked.
fn masked(direction: Direction, parts: &[&[u8]]) -> Vec<bool> {
    let mut mask = Mask::new(Shown::default());
    let mut all = Vec::new();
    for part in parts {
        let (before, mut runs) = (all.len(), Vec::new());
        mask.pass(direction, part, &mut runs);
        for run in runs {
            match run {
                Run::Kept(len) => all.resize(all.len() + len, false),
                Run::Masked(len) => all.resize(all.len() + len, true),
            }
        }
        assert_eq!(all.len() - before, part.len());
    }
    all
}
