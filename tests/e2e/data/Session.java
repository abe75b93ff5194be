import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Arrays;

/** One session with pgjdbc; what it prints is judged by test_clients.py. */
public class Session {
    public static void main(String[] arguments) throws Exception {
        long id = Long.parseLong(arguments[1]);
        try (Connection connection = DriverManager.getConnection(arguments[0])) {
            String select = "SELECT id, name, ssn FROM customers WHERE id = ?";
            try (PreparedStatement statement = connection.prepareStatement(select)) {
                for (int n = 0; n < 7; n++) { // the fifth execution makes it a named server-side statement
                    statement.setLong(1, id);
                    try (ResultSet rows = statement.executeQuery()) {
                        rows.next();
                        System.out.println(rows.getLong(1) + " " + rows.getString(2) + " " + rows.getString(3));
                    }
                }
            }
            try (Statement statement = connection.createStatement()) {
                statement.executeQuery("SELECT * FROM customer_export");
            } catch (SQLException denied) {
                boolean told = denied.getMessage().contains("AC-07");
                System.out.println("denied " + denied.getSQLState() + (told ? " AC-07" : ""));
            }
            connection.setAutoCommit(false);
            try (Statement statement = connection.createStatement()) {
                try {
                    statement.executeQuery("SELECT 1/0");
                } catch (SQLException error) {
                    System.out.println("error " + error.getSQLState());
                }
                try {
                    statement.executeQuery("SELECT 1");
                } catch (SQLException error) {
                    System.out.println("failed " + error.getSQLState());
                }
            }
            connection.rollback();
            System.out.println("rolled back");
            try (PreparedStatement statement = connection.prepareStatement("SELECT id FROM customers")) {
                statement.setFetchSize(3);
                int count = 0;
                try (ResultSet rows = statement.executeQuery()) {
                    while (rows.next()) {
                        count++;
                    }
                }
                System.out.println("fetched " + count);
            }
            String insert = "INSERT INTO transactions (id, account_id, branch, amount, at, counterparty)"
                + " SELECT ?, a.id, a.branch, 1, '2026-11-01 00:00:00+00', 'Station' FROM accounts a"
                + " WHERE a.id = (SELECT min(id) FROM accounts)";
            try (PreparedStatement statement = connection.prepareStatement(insert)) {
                for (long number : new long[] {3000001, 3000002}) {
                    statement.setLong(1, number);
                    statement.addBatch();
                }
                System.out.println("batch " + Arrays.toString(statement.executeBatch()));
            }
            connection.commit();
        }
        System.out.println("done");
    }
}
