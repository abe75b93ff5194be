import com.ibm.mq.jms.MQQueue;
import com.ibm.msg.client.jms.JmsConnectionFactory;
import com.ibm.msg.client.jms.JmsFactoryFactory;
import com.ibm.msg.client.wmq.WMQConstants;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Enumeration;
import java.util.List;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import javax.jms.BytesMessage;
import javax.jms.Connection;
import javax.jms.DeliveryMode;
import javax.jms.InvalidSelectorException;
import javax.jms.JMSException;
import javax.jms.JMSSecurityException;
import javax.jms.MapMessage;
import javax.jms.Message;
import javax.jms.MessageConsumer;
import javax.jms.MessageProducer;
import javax.jms.ObjectMessage;
import javax.jms.Queue;
import javax.jms.QueueBrowser;
import javax.jms.Session;
import javax.jms.StreamMessage;
import javax.jms.TemporaryQueue;
import javax.jms.TextMessage;

/** What an application of the MQ classes for JMS does; one line a case. */
public class JmsCases {
    static final long WAIT = 20_000;
    static Connection connection;
    static Session session;
    static Queue queue;
    static MessageProducer producer;

    static String text(Message message) throws JMSException {
        return message == null ? null : ((TextMessage) message).getText();
    }

    static Connection connect(boolean table, int reconnect) throws Exception {
        JmsConnectionFactory factory = JmsFactoryFactory.getInstance(WMQConstants.WMQ_PROVIDER).createConnectionFactory();
        factory.setStringProperty(WMQConstants.WMQ_QUEUE_MANAGER, Harness.MANAGER);
        factory.setIntProperty(WMQConstants.WMQ_CONNECTION_MODE, WMQConstants.WMQ_CM_CLIENT);
        factory.setStringProperty(WMQConstants.WMQ_APPLICATIONNAME, "jms cases");
        if (reconnect != 0) factory.setIntProperty(WMQConstants.WMQ_CLIENT_RECONNECT_OPTIONS, reconnect);
        if (table) {
            factory.setStringProperty(WMQConstants.WMQ_CCDTURL, Harness.table());
        } else {
            factory.setStringProperty(WMQConstants.WMQ_HOST_NAME, Harness.HOST);
            factory.setIntProperty(WMQConstants.WMQ_PORT, Harness.PORT);
            factory.setStringProperty(WMQConstants.WMQ_CHANNEL, Harness.CHANNEL);
            if (Harness.CIPHER != null) factory.setStringProperty(WMQConstants.WMQ_SSL_CIPHER_SUITE, Harness.CIPHER);
        }
        Connection made = factory.createConnection();
        made.start();
        return made;
    }

    static void begin() throws Exception {
        connection = connect(false, 0);
        session = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
        queue = session.createQueue("queue:///A.QUEUE");
        producer = session.createProducer(queue);
    }

    static void send(String... texts) throws JMSException {
        for (String text : texts) producer.send(session.createTextMessage(text));
    }

    static String receive(MessageConsumer consumer) throws JMSException { return text(consumer.receive(WAIT)); }

    static void drain() throws Exception {
        MessageConsumer consumer = session.createConsumer(queue);
        while (consumer.receiveNoWait() != null) { }
        consumer.close();
    }

    static List<String> selected(String selector) throws JMSException {
        MessageConsumer consumer = session.createConsumer(queue, selector);
        List<String> found = new ArrayList<>();
        for (Message message = consumer.receiveNoWait(); message != null; message = consumer.receiveNoWait()) found.add(text(message));
        consumer.close();
        return found;
    }

    static LinkedBlockingQueue<String> listen(Session listening, MessageConsumer ear, boolean commit) throws JMSException {
        LinkedBlockingQueue<String> heard = new LinkedBlockingQueue<>();
        ear.setMessageListener(message -> {
            try {
                String text = text(message);
                if (commit && text.equals("again") && !message.getJMSRedelivered()) {
                    heard.add("rollback");
                    listening.rollback();
                    return;
                }
                heard.add(text);
                if (commit) listening.commit();
            } catch (JMSException error) {
                heard.add(error.toString());
            }
        });
        return heard;
    }

    public static void main(String[] arguments) throws Exception {
        begin();
        Harness cases = new Harness(arguments, JmsCases::drain);
        messages(cases);
        receiving(cases);
        selecting(cases);
        units(cases);
        listening(cases);
        others(cases);
        cases.one("jms-close", connection::close);
        System.exit(0);  // threads of broken connections would go on
    }

    static void messages(Harness cases) {
        cases.one("jms-text", () -> {
            MessageConsumer consumer = session.createConsumer(queue);
            TextMessage sent = session.createTextMessage("hello, gr\u00fc\u00dfe");
            producer.send(sent);
            Message got = consumer.receive(WAIT);
            Harness.same("hello, gr\u00fc\u00dfe", text(got));
            Harness.same(sent.getJMSMessageID(), got.getJMSMessageID());
            consumer.close();
        });
        cases.one("jms-properties", () -> {
            MessageConsumer consumer = session.createConsumer(queue);
            TextMessage sent = session.createTextMessage("p");
            sent.setStringProperty("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
            sent.setStringProperty("markup", "<&>'\"");
            sent.setIntProperty("number", -7);
            sent.setLongProperty("amount", 1L << 40);
            sent.setDoubleProperty("rate", 1.25);
            sent.setBooleanProperty("flag", true);
            sent.setJMSType("payment");
            sent.setJMSCorrelationID("c-4711");
            sent.setJMSReplyTo(session.createQueue("queue:///REPLY"));
            producer.send(sent);
            Message got = consumer.receive(WAIT);
            Harness.check(got.getStringProperty("traceparent").startsWith("00-4bf9"), "traceparent");
            Harness.same("<&>'\"", got.getStringProperty("markup"));
            Harness.same("-7 1099511627776 1.25 true", got.getIntProperty("number") + " " + got.getLongProperty("amount") + " "
                + got.getDoubleProperty("rate") + " " + got.getBooleanProperty("flag"));
            Harness.same("payment c-4711", got.getJMSType() + " " + got.getJMSCorrelationID());
            Harness.check(got.getJMSReplyTo().toString().contains("REPLY"), got.getJMSReplyTo());
            consumer.close();
        });
        cases.one("jms-kinds", () -> {
            MessageConsumer consumer = session.createConsumer(queue);
            BytesMessage bytes = session.createBytesMessage();
            bytes.writeBytes(Harness.data(100));
            MapMessage map = session.createMapMessage();
            map.setString("iban", "DE89");
            StreamMessage stream = session.createStreamMessage();
            stream.writeInt(5);
            ObjectMessage object = session.createObjectMessage("object");
            for (Message each : new Message[] {bytes, map, stream, object, session.createMessage()}) producer.send(each);
            Harness.same(100L, ((BytesMessage) consumer.receive(WAIT)).getBodyLength());
            Harness.same("DE89", ((MapMessage) consumer.receive(WAIT)).getString("iban"));
            Harness.same(5, ((StreamMessage) consumer.receive(WAIT)).readInt());
            Harness.same("object", ((ObjectMessage) consumer.receive(WAIT)).getObject());
            Harness.check(consumer.receive(WAIT) != null, "no message without a body");
            consumer.close();
        });
        cases.one("jms-mq-body", () -> {
            MQQueue plain = (MQQueue) session.createQueue("queue:///A.QUEUE?targetClient=1");
            session.createProducer(plain).send(session.createTextMessage("no header"));
            MessageConsumer consumer = session.createConsumer(queue);
            Harness.same("no header", receive(consumer));
            consumer.close();
        });
        cases.one("jms-headers", () -> {
            MessageConsumer consumer = session.createConsumer(queue);
            producer.send(session.createTextMessage("low"), DeliveryMode.NON_PERSISTENT, 1, 0);
            producer.send(session.createTextMessage("high"), DeliveryMode.PERSISTENT, 8, 0);
            Message first = consumer.receive(WAIT), second = consumer.receive(WAIT);
            Harness.same("high 8 2", text(first) + " " + first.getJMSPriority() + " " + first.getJMSDeliveryMode());
            Harness.same("low 1 1", text(second) + " " + second.getJMSPriority() + " " + second.getJMSDeliveryMode());
            consumer.close();
        });
        cases.one("jms-expiry", () -> {
            MessageConsumer consumer = session.createConsumer(queue);
            producer.send(session.createTextMessage("gone"), DeliveryMode.NON_PERSISTENT, 4, 200);
            Thread.sleep(500);
            Harness.check(consumer.receiveNoWait() == null, "an expired message");
            consumer.close();
        });
        cases.one("jms-long", () -> {
            MessageConsumer consumer = session.createConsumer(queue);
            BytesMessage sent = session.createBytesMessage();
            byte[] data = Harness.data(1_500_000), back = new byte[data.length];
            sent.writeBytes(data);
            sent.setStringProperty("p", "q");
            producer.send(sent);
            ((BytesMessage) consumer.receive(WAIT)).readBytes(back);
            Harness.check(java.util.Arrays.equals(data, back), "other data");
            consumer.close();
        });
    }

    static void receiving(Harness cases) {
        cases.one("jms-nothing", () -> {
            MessageConsumer consumer = session.createConsumer(queue);
            Harness.check(consumer.receiveNoWait() == null, "a message");
            Harness.check(consumer.receive(200) == null, "a message");
            consumer.close();
        });
        cases.one("jms-browser", () -> {
            send("a", "b");
            for (int turn = 0; turn < 2; turn++) {
                StringBuilder seen = new StringBuilder();
                QueueBrowser browser = session.createBrowser(queue);
                for (Enumeration<?> all = browser.getEnumeration(); all.hasMoreElements();) seen.append(text((Message) all.nextElement()));
                browser.close();
                Harness.same("ab", seen.toString());
            }
        });
        cases.one("jms-temporary-queue", () -> {
            TemporaryQueue reply = session.createTemporaryQueue();
            MessageConsumer own = session.createConsumer(reply);
            TextMessage request = session.createTextMessage("ask");
            request.setJMSReplyTo(reply);
            producer.send(request);
            Session serving = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
            MessageConsumer consumer = serving.createConsumer(queue);
            Message asked = consumer.receive(WAIT);
            TextMessage answer = serving.createTextMessage("answer");
            answer.setJMSCorrelationID(asked.getJMSMessageID());
            serving.createProducer(asked.getJMSReplyTo()).send(answer);
            Message got = own.receive(WAIT);
            Harness.same("answer", text(got));
            Harness.same(request.getJMSMessageID(), got.getJMSCorrelationID());
            serving.close();
            own.close();
            reply.delete();
        });
        cases.one("jms-temporary-queue-deleted", () -> {
            TemporaryQueue made = session.createTemporaryQueue();
            session.createConsumer(made).close();
            made.delete();
            try {
                session.createConsumer(made);
                throw new IllegalStateException("the queue is still there");
            } catch (JMSException expected) { }
        });
        cases.one("jms-read-ahead", () -> {
            MQQueue ahead = (MQQueue) session.createQueue("queue:///A.QUEUE?readAheadAllowed=1");
            Session own = connection.createSession(false, Session.DUPS_OK_ACKNOWLEDGE);
            MessageConsumer consumer = own.createConsumer(ahead);
            producer.setDeliveryMode(DeliveryMode.NON_PERSISTENT);
            for (int i = 0; i < 100; i++) send("r" + i);
            producer.setDeliveryMode(DeliveryMode.PERSISTENT);
            for (int i = 0; i < 100; i++) Harness.same("r" + i, receive(consumer));
            own.close();
        });
        cases.one("jms-asynchronous-send", () -> {
            MQQueue sending = (MQQueue) session.createQueue("queue:///A.QUEUE?putAsyncAllowed=1");
            MessageProducer out = session.createProducer(sending);
            out.setDeliveryMode(DeliveryMode.NON_PERSISTENT);
            for (int i = 0; i < 20; i++) out.send(session.createTextMessage("s" + i));
            MessageConsumer consumer = session.createConsumer(queue);
            for (int i = 0; i < 20; i++) Harness.same("s" + i, receive(consumer));
            consumer.close();
        });
    }

    static void selecting(Harness cases) {
        cases.one("jms-selectors", () -> {
            String[] colours = {"red", "green", "blue", null};
            for (int i = 0; i < 8; i++) {
                TextMessage sent = session.createTextMessage("s" + i);
                if (colours[i % 4] != null) sent.setStringProperty("colour", colours[i % 4]);
                sent.setIntProperty("size", i);
                sent.setBooleanProperty("even", i % 2 == 0);
                producer.send(sent);
            }
            Harness.same("[s0]", selected("colour = 'red' AND size < 2").toString());
            Harness.same("[s3, s7]", selected("colour IS NULL").toString());
            Harness.same("[s1]", selected("colour <> 'red' AND colour <> 'blue' AND size BETWEEN 0 AND 3").toString());
            Harness.same("[s4, s6]", selected("even = TRUE AND colour IN ('red', 'blue') AND NOT size = 2").toString());
            Harness.same("[s2, s5]", selected("colour LIKE 'bl%' OR colour LIKE '_reen'").toString());
            Harness.check(selected("size = -1 OR colour = 'red'").isEmpty(), "a message");
        });
        cases.one("jms-selector-of-header", () -> {
            producer.send(session.createTextMessage("low"), DeliveryMode.PERSISTENT, 2, 0);
            producer.send(session.createTextMessage("high"), DeliveryMode.PERSISTENT, 7, 0);
            TextMessage typed = session.createTextMessage("typed");
            typed.setJMSType("payment");
            producer.send(typed, DeliveryMode.PERSISTENT, 3, 0);
            Harness.same("[high]", selected("JMSPriority > 5").toString());
            Harness.same("[typed]", selected("JMSType = 'payment'").toString());
            Harness.same("[low]", selected("JMSDeliveryMode = 'PERSISTENT'").toString());
        });
        cases.one("jms-selector-of-id", () -> {
            TextMessage first = session.createTextMessage("first"), second = session.createTextMessage("second");
            second.setJMSCorrelationID("c-1");
            producer.send(first);
            producer.send(second);
            Harness.same("[second]", selected("JMSCorrelationID = 'c-1'").toString());
            Harness.same("[first]", selected("JMSMessageID = '" + first.getJMSMessageID() + "'").toString());
        });
        cases.one("jms-browser-with-selector", () -> {
            for (int i = 0; i < 6; i++) {
                TextMessage sent = session.createTextMessage("b" + i);
                sent.setIntProperty("number", i);
                producer.send(sent);
            }
            QueueBrowser browser = session.createBrowser(queue, "number >= 4");
            List<String> seen = new ArrayList<>();
            for (Object each : Collections.list(browser.getEnumeration())) seen.add(text((Message) each));
            browser.close();
            Harness.same("[b4, b5]", seen.toString());
        });
        cases.one("jms-wrong-selector", () -> {
            try {
                session.createConsumer(queue, "colour = = 'red'");
                throw new IllegalStateException("accepted");
            } catch (InvalidSelectorException expected) { }
        });
    }

    static void units(Harness cases) {
        cases.one("jms-transacted", () -> {
            Session unit = connection.createSession(true, Session.SESSION_TRANSACTED);
            MessageProducer out = unit.createProducer(queue);
            MessageConsumer in = unit.createConsumer(queue);
            out.send(unit.createTextMessage("never"));
            unit.rollback();
            Harness.check(in.receiveNoWait() == null, "a rolled back message");
            out.send(unit.createTextMessage("later"));
            unit.commit();
            Harness.same("later", receive(in));
            unit.rollback();
            Message again = in.receive(WAIT);
            Harness.check(again.getJMSRedelivered() && again.getIntProperty("JMSXDeliveryCount") == 2, "not redelivered");
            unit.commit();
            unit.close();
        });
        cases.one("jms-transacted-nonpersistent", () -> {
            Session unit = connection.createSession(true, Session.SESSION_TRANSACTED);
            MessageProducer out = unit.createProducer(queue);
            out.setDeliveryMode(DeliveryMode.NON_PERSISTENT);
            MessageConsumer in = unit.createConsumer(queue);
            for (String each : new String[] {"a", "b"}) out.send(unit.createTextMessage(each));
            unit.commit();
            Harness.same("ab", receive(in) + receive(in));
            unit.rollback();
            Harness.same("ab", receive(in) + receive(in));
            unit.commit();
            unit.close();
        });
        cases.one("jms-client-acknowledge", () -> {
            Session own = connection.createSession(false, Session.CLIENT_ACKNOWLEDGE);
            MessageConsumer in = own.createConsumer(queue);
            send("a", "b");
            receive(in);
            Message second = in.receive(WAIT);
            own.recover();
            Harness.same("a", receive(in));
            second = in.receive(WAIT);
            Harness.same("b", text(second));
            second.acknowledge();
            own.recover();
            Harness.check(in.receiveNoWait() == null, "an acknowledged message");
            own.close();
        });
        cases.one("jms-poison", () -> poison("queue:///POISON.QUEUE", "queue:///BACKOUT.QUEUE"));
        cases.one("jms-dead-letter", () -> poison("queue:///FATAL.QUEUE", "queue:///SYSTEM.DEAD.LETTER.QUEUE"));
    }

    /** A listener that rolls back for ever: the client itself moves the message away. */
    static void poison(String from, String to) throws Exception {
        Session unit = connection.createSession(true, Session.SESSION_TRANSACTED);
        MessageConsumer ear = unit.createConsumer(unit.createQueue(from));
        ear.setMessageListener(message -> {
            try {
                unit.rollback();
            } catch (JMSException error) {
                throw new IllegalStateException(error);
            }
        });
        session.createProducer(session.createQueue(from)).send(session.createTextMessage("poison"));
        MessageConsumer moved = session.createConsumer(session.createQueue(to));
        Message found = moved.receive(WAIT);
        Harness.check(found != null, "not moved");
        moved.close();
        unit.close();
    }

    static void listening(Harness cases) {
        cases.one("jms-listener", () -> {
            Session own = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
            LinkedBlockingQueue<String> heard = listen(own, own.createConsumer(queue), false);
            for (int i = 0; i < 5; i++) send("m" + i);
            for (int i = 0; i < 5; i++) Harness.same("m" + i, heard.poll(WAIT, TimeUnit.MILLISECONDS));
            own.close();
        });
        cases.one("jms-transacted-listener", () -> {
            Session own = connection.createSession(true, Session.SESSION_TRANSACTED);
            LinkedBlockingQueue<String> heard = listen(own, own.createConsumer(queue), true);
            send("first", "again", "last");
            for (String each : new String[] {"first", "rollback", "again", "last"}) Harness.same(each, heard.poll(WAIT, TimeUnit.MILLISECONDS));
            own.close();
        });
        cases.one("jms-listener-with-selector", () -> {
            Session own = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
            LinkedBlockingQueue<String> heard = listen(own, own.createConsumer(queue, "number = 2"), false);
            for (int i = 0; i < 4; i++) {
                TextMessage sent = session.createTextMessage("n" + i);
                sent.setIntProperty("number", i);
                producer.send(sent);
            }
            Harness.same("n2", heard.poll(WAIT, TimeUnit.MILLISECONDS));
            own.close();
        });
        cases.one("jms-stop-start", () -> {
            Connection other = connect(false, 0);
            Session own = other.createSession(false, Session.AUTO_ACKNOWLEDGE);
            LinkedBlockingQueue<String> heard = listen(own, own.createConsumer(queue), false);
            send("one");
            Harness.same("one", heard.poll(WAIT, TimeUnit.MILLISECONDS));
            other.stop();
            send("two");
            Harness.check(heard.poll(300, TimeUnit.MILLISECONDS) == null, "a message while stopped");
            other.start();
            Harness.same("two", heard.poll(WAIT, TimeUnit.MILLISECONDS));
            other.close();
        });
        cases.one("jms-two-listeners", () -> {
            Session own = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
            Session more = connection.createSession(false, Session.AUTO_ACKNOWLEDGE);
            LinkedBlockingQueue<String> heard = listen(own, own.createConsumer(queue), false);
            LinkedBlockingQueue<String> also = listen(more, more.createConsumer(queue), false);
            for (int i = 0; i < 20; i++) send("t" + i);
            int seen = 0;
            for (long end = System.nanoTime() + WAIT * 1_000_000; seen < 20 && System.nanoTime() < end;) {
                if (heard.poll(10, TimeUnit.MILLISECONDS) != null) seen++;
                if (also.poll(10, TimeUnit.MILLISECONDS) != null) seen++;
            }
            Harness.same(20, seen);
            own.close();
            more.close();
        });
    }

    static void others(Harness cases) {
        cases.one("jms-denied", () -> {
            try {
                session.createConsumer(session.createQueue("queue:///DENIED.QUEUE"));
                throw new IllegalStateException("not denied");
            } catch (JMSSecurityException expected) { }
            try {
                session.createProducer(session.createQueue("queue:///DENIED.QUEUE"));
                throw new IllegalStateException("not denied");
            } catch (JMSSecurityException expected) { }
            send("still");
            Harness.same("[still]", selected(null).toString());
        });
        cases.one("jms-unknown", () -> {
            try {
                session.createConsumer(session.createQueue("queue:///NO.SUCH"));
                throw new IllegalStateException("found");
            } catch (JMSException error) {
                Harness.check(("" + error.getLinkedException()).contains("2085"), error.getLinkedException());
            }
        });
        cases.one("jms-many-conversations", () -> {
            Connection other = connect(true, 0);
            List<Session> sessions = new ArrayList<>();
            for (int i = 1; i < 32; i++) sessions.add(other.createSession(false, Session.AUTO_ACKNOWLEDGE));
            List<MessageConsumer> consumers = new ArrayList<>();
            for (Session each : sessions) consumers.add(each.createConsumer(queue));
            for (int turn = 0; turn < 3; turn++) {
                for (int i = 0; i < sessions.size(); i++) {
                    sessions.get(i).createProducer(queue).send(sessions.get(i).createTextMessage("c" + i));
                    Harness.same("c" + i, receive(consumers.get(i)));
                }
            }
            other.close();
        });
        cases.one("jms-reconnect", () -> {
            Connection other = connect(false, WMQConstants.WMQ_CLIENT_RECONNECT);
            Session own = other.createSession(false, Session.AUTO_ACKNOWLEDGE);
            MessageProducer out = own.createProducer(queue);
            out.send(own.createTextMessage("before"));
            Harness.ask("restart");
            begin();
            // A put that meets the outage may end with 2549, outcome unknown: an open does not.
            MessageConsumer in = own.createConsumer(queue);
            Harness.same("before", receive(in));
            out.send(own.createTextMessage("after"));
            Harness.same("after", receive(in));
            other.close();
        });
    }
}
