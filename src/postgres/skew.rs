//! Clocks of servers and of their database. Promises do not depend on them, but the times at which entries were enrolled do.

use std::time::{SystemTime, UNIX_EPOCH};

use super::failure::Unreachable;
use super::link::Database;
use super::statement::query;
use crate::metrics;

/// A clock that is further off is worth a line.
const SKEW_MAX: f64 = 5.0;

/// Compares this server's clock with the database's.
///
/// # Errors
/// The database cannot be reached.
pub async fn observe_skew(database: &Database) -> Result<(), Unreachable> {
    let ahead = database.run(|connection| async move {
        let asked = own_clock();
        let rows = query!(connection, "select extract(epoch from clock_timestamp())::float8")?;
        // What it took to ask is divided between both ways.
        Ok::<_, Unreachable>(f64::midpoint(asked, own_clock()) - rows[0].get::<_, f64>(0))
    });
    let ahead = ahead.await?;
    metrics::database_clock_skew(ahead);
    if let Some(warning) = warning(ahead) {
        tracing::warn!("{warning}");
    }
    Ok(())
}

fn own_clock() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// What is said of a clock that is `ahead` by so many seconds.
fn warning(ahead: f64) -> Option<String> {
    if ahead.abs() <= SKEW_MAX {
        return None;
    }
    let direction = if ahead > 0.0 { "ahead of" } else { "behind" };
    Some(format!(
        "this server's clock is {:.1} s {direction} that of the database: the times at which it enrols \
         entries are off by that; set the clocks by NTP",
        ahead.abs()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_in_one_line() {
        for right in [0.0, 5.0, -5.0] {
            assert_eq!(warning(right), None);
        }
        let ahead = warning(95.04).expect("it is off");
        assert!(ahead.starts_with("this server's clock is 95.0 s ahead of that of the database"), "{ahead}");
        let behind = warning(-6.0).expect("it is off");
        assert!(behind.contains("6.0 s behind that") && !behind.contains('\n'), "{behind}");
    }
}
