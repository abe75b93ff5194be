import java.math.BigDecimal;
import java.sql.*;

/** A shop's batch program over JDBC: {@code java Shop.java URL}. Ordinary code; what it sends is captured. */
public class Shop {
    static int drain(ResultSet rows) throws SQLException {
        int count = 0;
        while (rows.next()) count++;
        rows.close();
        return count;
    }

    static void query(Connection connection, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int n = 0; n < values.length; n++) statement.setObject(n + 1, values[n]);
            drain(statement.executeQuery());
        }
    }

    static int update(Connection connection, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int n = 0; n < values.length; n++) statement.setObject(n + 1, values[n]);
            return statement.executeUpdate();
        }
    }

    public static void main(String[] arguments) throws Exception {
        try (Connection connection = DriverManager.getConnection(arguments[0])) {
            read(connection);
            write(connection);
            describe(connection);
        }
    }

    static void read(Connection connection) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            drain(statement.executeQuery("SELECT * FROM customers ORDER BY id"));
            drain(statement.executeQuery("SELECT count(*) FROM orders"));
            statement.setMaxRows(3);
            drain(statement.executeQuery("SELECT id, total FROM orders ORDER BY total DESC, id"));
        }
        for (int n = 1; n <= 7; n++) query(connection, "SELECT name, email FROM customers WHERE id = ?", (long) n);
        query(connection, "SELECT * FROM customers WHERE name LIKE ? ORDER BY id", "Customer 3%");
        query(connection, "SELECT * FROM products WHERE price BETWEEN ? AND ? ORDER BY price", new BigDecimal("5.00"), new BigDecimal("9.00"));
        query(connection, "SELECT * FROM orders WHERE placed >= ? AND placed < ? ORDER BY id", Timestamp.valueOf("2025-01-10 00:00:00"), Timestamp.valueOf("2025-01-20 00:00:00"));
        query(connection, "SELECT * FROM customers WHERE joined = ?", Date.valueOf("2024-01-15"));
        query(connection, "SELECT * FROM orders WHERE reference = ?", java.util.UUID.fromString("c4ca4238-a0b9-2382-0dcc-509a6f75849b"));
        query(connection, "SELECT * FROM orders WHERE state = ?::order_state ORDER BY id LIMIT ?", "sent", 5);
        query(connection, "SELECT * FROM orders WHERE id = ANY (?) ORDER BY id", (Object) connection.createArrayOf("bigint", new Object[] {1L, 2L, 3L}));
        query(connection, "SELECT c.name, sum(o.total) FROM customers c INNER JOIN orders o ON o.customer_id = c.id WHERE c.active = ? GROUP BY c.name HAVING sum(o.total) > ? ORDER BY 2 DESC, 1", true, new BigDecimal("1000"));
        query(connection, "SELECT p.title, l.quantity, l.price * l.quantity AS amount FROM order_lines l JOIN products p ON p.id = l.product_id WHERE l.order_id = ? ORDER BY p.id", 17L);
        query(connection, "SELECT id FROM customers WHERE country IN (?, ?) AND notes IS NOT NULL ORDER BY id OFFSET ? ROWS FETCH NEXT ? ROWS ONLY", "BE", "NL", 1, 3);
        query(connection, "SELECT DISTINCT country FROM customers ORDER BY country");
        query(connection, "SELECT CASE WHEN stock > ? THEN 'many' ELSE 'few' END, count(*) FROM products GROUP BY 1 ORDER BY 1", 20);
        query(connection, "SELECT EXTRACT(YEAR FROM placed), count(*) FROM orders GROUP BY EXTRACT(YEAR FROM placed) ORDER BY 1");
        query(connection, "SELECT id FROM customers c WHERE NOT EXISTS (SELECT 1 FROM orders o WHERE o.customer_id = c.id AND o.total > ?) ORDER BY id", new BigDecimal("400"));
        query(connection, "SELECT o.id, r.n FROM orders o, LATERAL (SELECT count(*) AS n FROM order_lines l WHERE l.order_id = o.id) r ORDER BY o.id LIMIT 5");
        query(connection, "SELECT attributes->>'colour' FROM products WHERE attributes @> ?::jsonb ORDER BY id", "{\"colour\": \"red\"}");
        query(connection, "SELECT {fn UCASE(name)}, {fn LENGTH(email)} FROM customers WHERE id < ? ORDER BY id", 3);
        query(connection, "SELECT CURRENT_DATE IS NOT NULL, CURRENT_TIMESTAMP IS NOT NULL");
    }

    static void write(Connection connection) throws SQLException {
        connection.setAutoCommit(false);
        connection.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        try (Statement statement = connection.createStatement()) {
            statement.setFetchSize(20);
            drain(statement.executeQuery("SELECT id FROM orders ORDER BY id"));
        }
        try (PreparedStatement statement = connection.prepareStatement(
                "INSERT INTO customers (name, email, country, joined) VALUES (?, ?, ?, ?)", Statement.RETURN_GENERATED_KEYS)) {
            statement.setString(1, "Batch");
            statement.setString(2, "batch@example.org");
            statement.setString(3, "DE");
            statement.setDate(4, Date.valueOf("2026-04-01"));
            statement.executeUpdate();
            drain(statement.getGeneratedKeys());
        }
        try (PreparedStatement statement = connection.prepareStatement("UPDATE products SET stock = stock + ? WHERE sku = ?")) {
            for (int n = 1; n <= 5; n++) {
                statement.setInt(1, n);
                statement.setString(2, "SKU-" + n);
                statement.addBatch();
            }
            statement.executeBatch();
        }
        connection.commit();
        Savepoint savepoint = connection.setSavepoint("before");
        update(connection, "DELETE FROM order_lines WHERE order_id = ?", 199L);
        connection.rollback(savepoint);
        try {
            update(connection, "INSERT INTO customers (name, email, country, joined) VALUES (?, ?, ?, ?)", "x", "c1@example.org", "DE", Date.valueOf("2026-04-01"));
        } catch (SQLException expected) {
            connection.rollback();
        }
        update(connection, "INSERT INTO countries VALUES (?, ?) ON CONFLICT (code) DO UPDATE SET name = EXCLUDED.name", "PL", "Poland");
        update(connection, "INSERT INTO order_lines (order_id, product_id, quantity, price) SELECT ?, id, 1, price FROM products WHERE sku = ? ON CONFLICT DO NOTHING", 1L, "SKU-40");
        query(connection, "SELECT id FROM products WHERE id = ? FOR UPDATE", 4);
        connection.rollback();
        connection.setAutoCommit(true);
        try (Statement statement = connection.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE);
                ResultSet rows = statement.executeQuery("SELECT id, name, notes FROM customers WHERE email = 'batch@example.org'")) {
            rows.next();
            rows.updateString("notes", "through a result set");
            rows.updateRow();
            rows.deleteRow();
        }
        connection.setReadOnly(true);
        query(connection, "SELECT count(*) FROM countries");
        connection.setReadOnly(false);
        connection.isValid(5);
    }

    static void describe(Connection connection) throws SQLException {
        DatabaseMetaData data = connection.getMetaData();
        data.getDatabaseProductVersion();
        drain(data.getCatalogs());
        drain(data.getSchemas());
        drain(data.getTableTypes());
        drain(data.getTables(null, null, "%", new String[] {"TABLE", "VIEW"}));
        drain(data.getTables(null, "public", "%", null));
        drain(data.getColumns(null, "public", "%", "%"));
        drain(data.getColumns(null, null, "orders", null));
        drain(data.getPrimaryKeys(null, "public", "order_lines"));
        drain(data.getImportedKeys(null, "public", "orders"));
        drain(data.getExportedKeys(null, "public", "customers"));
        drain(data.getCrossReference(null, "public", "customers", null, "public", "orders"));
        drain(data.getIndexInfo(null, "public", "orders", false, true));
        drain(data.getBestRowIdentifier(null, "public", "customers", DatabaseMetaData.bestRowSession, true));
        drain(data.getTypeInfo());
        drain(data.getUDTs(null, null, "%", null));
        drain(data.getFunctions(null, "public", "%"));
        drain(data.getProcedures(null, "public", "%"));
        drain(data.getTablePrivileges(null, "public", "customers"));
        drain(data.getColumnPrivileges(null, "public", "customers", "%"));
        data.getSQLKeywords();
        try (PreparedStatement statement = connection.prepareStatement("SELECT id, title, tags FROM products WHERE id = ?")) {
            ResultSetMetaData columns = statement.getMetaData();
            columns.getTableName(1);
            columns.isAutoIncrement(1);
            columns.isNullable(2);
            statement.getParameterMetaData().getParameterTypeName(1);
        } catch (SQLException e) {
            connection.clearWarnings();
        }
    }
}
