import com.ibm.msg.client.jms.JmsConnectionFactory;
import com.ibm.msg.client.jms.JmsFactoryFactory;
import com.ibm.msg.client.wmq.WMQConstants;
import java.util.Arrays;
import java.util.Enumeration;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import javax.jms.Connection;
import javax.jms.JMSException;
import javax.jms.Message;
import javax.jms.MessageConsumer;
import javax.jms.MessageProducer;
import javax.jms.Queue;
import javax.jms.QueueBrowser;
import javax.jms.Session;
import javax.jms.TemporaryQueue;
import javax.jms.TextMessage;

/** What an application of the MQ classes for JMS does; one line a case. */
public class JmsCases {
    static List<String> wanted;

    interface Body { void run() throws Exception; }

    static void check(boolean condition, String what) {
        if (!condition) throw new IllegalStateException(what);
    }

    static void one(String name, Body body) {
        if (!wanted.isEmpty() && !wanted.contains(name)) return;
        try {
            body.run();
            System.out.println("case " + name + " ok");
        } catch (Throwable error) {
            System.out.println("case " + name + " FAIL " + error);
        }
    }

    static String text(Message message) throws JMSException {
        return message == null ? null : ((TextMessage) message).getText();
    }

    public static void main(String[] arguments) throws Exception {
        wanted = Arrays.asList(arguments).subList(4, arguments.length);
        JmsConnectionFactory factory = JmsFactoryFactory.getInstance(WMQConstants.WMQ_PROVIDER).createConnectionFactory();
        factory.setStringProperty(WMQConstants.WMQ_QUEUE_MANAGER, arguments[0]);
        factory.setStringProperty(WMQConstants.WMQ_HOST_NAME, arguments[1]);
        factory.setIntProperty(WMQConstants.WMQ_PORT, Integer.parseInt(arguments[2]));
        factory.setStringProperty(WMQConstants.WMQ_CHANNEL, arguments[3]);
        factory.setIntProperty(WMQConstants.WMQ_CONNECTION_MODE, WMQConstants.WMQ_CM_CLIENT);
        Connection connection = factory.createConnection();
        connection.start();
        Session session = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
        Queue queue = session.createQueue("queue:///A.QUEUE");
        MessageProducer producer = session.createProducer(queue);
        MessageConsumer consumer = session.createConsumer(queue);

        one("jms-send-receive", () -> {
            TextMessage sent = session.createTextMessage("hello");
            sent.setStringProperty("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
            producer.send(sent);
            Message got = consumer.receive(5000);
            check("hello".equals(text(got)), "other text");
            check(got.getStringProperty("traceparent").startsWith("00-4bf9"), "property");
        });
        one("jms-nothing", () -> {
            check(consumer.receiveNoWait() == null, "a message");
            check(consumer.receive(200) == null, "a message");
        });
        one("jms-correlation", () -> {
            TextMessage sent = session.createTextMessage("answer");
            sent.setJMSCorrelationID("c-4711");
            producer.send(sent);
            check("c-4711".equals(consumer.receive(5000).getJMSCorrelationID()), "correlation id");
        });
        one("jms-browser", () -> {
            for (String value : new String[] {"a", "b"}) producer.send(session.createTextMessage(value));
            StringBuilder seen = new StringBuilder();
            QueueBrowser browser = session.createBrowser(queue);
            for (Enumeration<?> all = browser.getEnumeration(); all.hasMoreElements();) seen.append(text((Message) all.nextElement()));
            browser.close();
            check(seen.toString().equals("ab"), seen.toString());
            for (int i = 0; i < 2; i++) consumer.receive(5000);
        });
        one("jms-temporary-queue", () -> {
            TemporaryQueue reply = session.createTemporaryQueue();
            session.createProducer(reply).send(session.createTextMessage("r"));
            MessageConsumer own = session.createConsumer(reply);
            check("r".equals(text(own.receive(5000))), "other text");
            own.close();
            reply.delete();
        });
        consumer.close();
        one("jms-transacted", () -> {
            Session unit = connection.createSession(true, Session.SESSION_TRANSACTED);
            MessageProducer out = unit.createProducer(queue);
            MessageConsumer in = unit.createConsumer(queue);
            out.send(unit.createTextMessage("never"));
            unit.rollback();
            check(in.receiveNoWait() == null, "a rolled back message");
            out.send(unit.createTextMessage("later"));
            unit.commit();
            check("later".equals(text(in.receive(5000))), "other text");
            unit.rollback();
            Message again = in.receive(5000);
            check(again.getJMSRedelivered() && again.getIntProperty("JMSXDeliveryCount") == 2, "not redelivered");
            unit.commit();
            unit.close();
        });
        one("jms-listener", () -> {
            Session listening = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
            LinkedBlockingQueue<String> heard = new LinkedBlockingQueue<>();
            MessageConsumer ear = listening.createConsumer(queue);
            ear.setMessageListener(message -> {
                try {
                    heard.add(text(message));
                } catch (JMSException error) {
                    heard.add(error.toString());
                }
            });
            for (int i = 0; i < 5; i++) producer.send(session.createTextMessage("m" + i));
            for (int i = 0; i < 5; i++) check(("m" + i).equals(heard.poll(5, TimeUnit.SECONDS)), "message " + i);
            ear.close();
            listening.close();
        });
        one("jms-denied", () -> {
            try {
                session.createConsumer(session.createQueue("queue:///DENIED.QUEUE"));
            } catch (JMSException error) {
                check(error instanceof javax.jms.JMSSecurityException, error.toString());
                return;
            }
            throw new IllegalStateException("not denied");
        });
        one("jms-close", connection::close);
    }
}
